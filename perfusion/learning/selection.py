"""Which step is kept: every few steps draw the prompts, score them, keep the best concept (method.md 4, stopping).

And the end: whatever stops a training (its steps, patience, trainer.max_time, Ctrl-C, a cluster's SIGTERM, a terminal that closes), its last state is
scored and saved as well.
"""

import signal
import statistics
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from PIL import Image

from perfusion.atomic import whole
from perfusion.errors import UserError
from perfusion.learning.methods import put_on, word_of
from perfusion.method.sampling import Sampling, draw
from perfusion.plots import attempt, contact_sheet
from perfusion.scorers import ClipScorer

MEANS = {"harmonic": statistics.harmonic_mean, "arithmetic": statistics.fmean}


class Selection(pl.Callback):
    """Draws through put_on, the road users take; from cfg.start on writes the concept file whenever the score improves.

    Score: cfg.mean of the raw CLIP cosines, picture with real pictures and picture with its text, means over the prompts;
    the concept's word is replaced by the super-category's for the text. With the concept goes last.ckpt, from which a run
    goes on. Belongs after callbacks that stop a training. `signal`: the one that stopped it, or 0.
    """

    def __init__(
        self,
        cfg: DictConfig,
        sampling: Sampling,
        scorer: ClipScorer,
        real: list[Image.Image],
        metadata: dict,
        path: Path,
    ):
        self.cfg, self.sampling, self.scorer, self.metadata, self.path = cfg, sampling, scorer, metadata, path
        self.checkpoint = path.with_name("last.ckpt")
        self.real = scorer.images(real)
        self.best, self.history = float("-inf"), []
        self.drawn: list[tuple[str, Image.Image]] = []  # the last step's prompts and pictures
        self.step, self.stopping, self.signal, self.handlers = -1, False, 0, {}
        self.seconds, self.since = 0.0, 0.0  # of training, without what is drawn here; and since when it is going on

    # -- when ---------------------------------------------------------------------------------------------------------
    def on_train_start(self, trainer, module: pl.LightningModule) -> None:
        self.step = trainer.global_step
        self.seconds += 0.0 if self.history else getattr(module, "setup_seconds", 0.0)
        self.since = time.perf_counter()
        if threading.current_thread() is threading.main_thread():  # no other may have handlers
            wanted = [
                s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN
            ]
            self.handlers = {s: signal.signal(s, self._stop) for s in wanted}

    def _stop(self, number: int, frame) -> None:
        if self.signal:  # asked twice
            sys.exit(128 + number)
        self.signal, self.stopping = number, True
        with suppress(OSError):  # of a terminal that is closed
            print("\nstopping: what is learned so far is saved first; once more stops at once.", file=sys.stderr)

    def on_train_batch_end(self, trainer, module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        self.stopping, trainer.should_stop = self.stopping or trainer.should_stop, False
        if trainer.global_step == self.step:  # among the micro-batches of one step, from which no run could go on
            return
        self.step = trainer.global_step
        stopping = _any(trainer, self.stopping)
        last = stopping or self.step >= trainer.max_steps
        if last or (self.cfg.every and self.step % self.cfg.every == 0):
            if stopping:  # whoever stops it may not wait
                trainer.save_checkpoint(self.checkpoint, weights_only=False)
            stopping = _any(trainer, self.keep(trainer, module, last) or stopping)
            module.log_dict({f"selection/{k}": v for k, v in self._logged().items()}, batch_size=1)
            trainer.save_checkpoint(self.checkpoint, weights_only=False)
        trainer.should_stop = stopping

    def on_train_end(self, trainer, module: pl.LightningModule) -> None:
        if not self.history or self.history[-1]["step"] != trainer.global_step:  # +trainer.max_epochs, and the like
            self.keep(trainer, module, last=True)
            trainer.save_checkpoint(self.checkpoint, weights_only=False)
        self._let_go()

    def on_exception(self, trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._let_go()
        if trainer.is_global_zero and self.best == float("-inf") and trainer.global_step > 0:
            with suppress(UserError, OSError):  # not finite, or a full disk: the exception under way says more
                module.concept(**self.metadata).save(self.path)

    def _let_go(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    # -- which --------------------------------------------------------------------------------------------------------
    def keep(self, trainer, module: pl.LightningModule, last: bool) -> bool:
        """Score this step, save its concept if it is the best, or the last and none is kept. True: patience is at its end."""
        if not trainer.is_global_zero:  # under DDP the first process draws, the others wait for it
            return False
        self.seconds += time.perf_counter() - self.since
        concept = module.concept(**self.metadata)
        scores = self.score(module, concept) if self.cfg.every else {"step": module.global_step, "score": 0.0}
        self.history.append(scores | {"seconds": round(self.seconds, 2)})
        late = [s["score"] for s in self.history if s["step"] >= min(self.cfg.start, trainer.max_steps)]
        nothing = self.best == float("-inf")
        if (late and scores["score"] > self.best) or (last and (nothing or not self.cfg.every)):
            self.best = scores["score"]
            concept.save(self.path)
        self.since = time.perf_counter()
        return bool(late and self.cfg.patience and len(late) - 1 - late.index(max(late)) >= self.cfg.patience)

    @torch.no_grad()
    def score(self, module: pl.LightningModule, concept) -> dict:
        prompts = list(self.cfg.prompts)
        seeds = [self.cfg.seed + i for i in range(len(prompts))]
        named = [p.format(word_of(concept)) for p in prompts]
        with module.detached() as pipe:
            handle = put_on(pipe, concept)
            try:
                with module.trainer.precision_plugin.forward_context():
                    drawn = draw(pipe, named, seeds, self.sampling)
            finally:
                handle.unload()
        self.drawn = list(zip(named, drawn))
        attempt(contact_sheet, [drawn], path=self.path.parent / "selection" / f"{module.global_step:04d}.png")
        pictures, texts = (
            self.scorer.images(drawn),
            self.scorer.texts([p.format(module.super_category) for p in prompts]),
        )
        image, text = (pictures @ self.real.T).mean().item(), (pictures * texts).sum(-1).mean().item()
        return {
            "step": module.global_step,
            "image": image,
            "text": text,
            "score": MEANS[self.cfg.mean]([max(image, 0.0), max(text, 0.0)]),
        }

    def _logged(self) -> dict:
        """The last step's scores, where it was drawn."""
        return (
            {k: v for k, v in self.history[-1].items() if k not in ("step", "seconds")}
            if self.drawn and self.history
            else {}
        )

    # -- going on -----------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict:
        # The best concept so far travels with the checkpoint: a run resumed in another folder has it too.
        kept = (
            torch.frombuffer(bytearray(self.path.read_bytes()), dtype=torch.uint8)
            if self.best > float("-inf")
            else None
        )
        return {"best": self.best, "history": self.history, "file": kept, "seconds": self.seconds}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.history, self.seconds = state["best"], state["history"], state["seconds"]
        if state["file"] is not None:
            with whole(self.path) as part:
                part.write_bytes(bytes(state["file"].tolist()))


def _any(trainer, wanted: bool) -> bool:
    """Whether any process wants it; under DDP they stop together, or wait for one another for ever."""
    return trainer.strategy.reduce_boolean_decision(wanted, all=False) if trainer.world_size > 1 else wanted
