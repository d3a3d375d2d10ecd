"""perfusion covariance: C of the configured model over captions, into a file that training takes as covariance.file."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from perfusion.atomic import alone, check_place
from perfusion.config import check
from perfusion.errors import UserError
from perfusion.learning.captions import Captions
from perfusion.learning.models import check_device, check_model, load_pipeline, own_captions
from perfusion.method.covariance import Covariance, second_moment
from perfusion.method.text_encoders import text_encoder_of

log = logging.getLogger(__name__)


def measure(cfg: DictConfig) -> Covariance:
    """Measure C and write cfg.output; a run that was stopped goes on from cfg.output + ".state".

    Raises UserError, before any weights load, for input that cannot work.
    """
    cfg = check("covariance", cfg)
    output = Path(cfg.output)
    check_place("output", output, "a covariance file")
    check_model(cfg.model, ("path",))
    state = Path(f"{output}.state")
    if output.exists():
        state.unlink(missing_ok=True)  # left by a kill between the two
        raise UserError(f"output={output} exists already; give another name, or delete it to measure it again.")
    if cfg.captions:
        texts = Captions(cfg.captions, cfg.count, cfg.column)
        texts.check()
    else:
        texts = own_captions(cfg.model.captions, cfg.count)
    device = check_device(cfg.device)
    pipe = load_pipeline(cfg.model)
    with alone(output, "output"):
        covariance = second_moment(
            texts,
            pipe.tokenizer,
            text_encoder_of(pipe).to(device),
            cfg.tokens,
            cfg.batch_size,
            state=state,
            save_every=cfg.save_every,
            output=output,
        )
    if covariance.count < (width := len(covariance.C)):
        log.warning(
            f"count={cfg.count} gives {covariance.count} tokens, too few for encodings {width} wide: C is singular, and its "
            f"shrinkage alone makes it invertible; give a count of {width} or more."
        )
    print(f"covariance: {output}, {covariance.count} tokens, condition number {covariance.condition:.3g}")
    print(f"to train with it: covariance.file={output}")
    return covariance


def run(cfg: DictConfig) -> None:
    measure(cfg)
