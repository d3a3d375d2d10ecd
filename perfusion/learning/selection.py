"""Which step to keep: every few steps draw the prompts, score them, keep the best concept (method.md 4, stopping)."""

import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from PIL import Image

from perfusion.learning.methods import put_on, word_of
from perfusion.method.sampling import Sampling, draw
from perfusion.plots import contact_sheet
from perfusion.scorers import ClipScorer


class Selection(pl.Callback):
    """Draws through put_on, the road users take; from cfg.start on writes the concept file whenever the score improves.

    Score: harmonic mean of the raw CLIP cosines, picture with real pictures and picture with its text, means over the
    prompts; the concept's word is replaced by the super-category's for the text.
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
        self.real = scorer.images(real)
        self.best, self.history = float("-inf"), []
        self.drawn: list[tuple[str, Image.Image]] = []  # the last step's prompts and pictures
        self.seconds = 0.0  # of training, without what is drawn here

    def on_train_start(self, trainer, module) -> None:
        self.seconds += getattr(module, "setup_seconds", 0.0) if not self.history else 0.0
        self.going_on = time.perf_counter()

    def on_train_batch_end(self, trainer, module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        # Not at step 0, which is where the first of several accumulated micro-batches ends.
        due = step > 0 and step % self.cfg.every == 0 if self.cfg.every else step == trainer.max_steps
        if not trainer.is_global_zero:  # under DDP the first process draws, the others wait for it
            return
        if not due or (self.history and self.history[-1]["step"] == step):
            return
        self.seconds += time.perf_counter() - self.going_on
        concept = module.concept(**self.metadata)
        scores = self.score(module, concept) if self.cfg.every else {"step": step, "score": 0.0}
        self.history.append(scores | {"seconds": round(self.seconds, 2)})
        late = [s["score"] for s in self.history if s["step"] >= min(self.cfg.start, trainer.max_steps)]
        if late and (not self.cfg.every or scores["score"] > self.best):  # without scores the last step is kept
            self.best = scores["score"]
            concept.save(self.path)
        if late and self.cfg.patience and len(late) - 1 - late.index(max(late)) >= self.cfg.patience:
            trainer.should_stop = True
        self.going_on = time.perf_counter()

    @torch.no_grad()
    def score(self, module: pl.LightningModule, concept) -> dict:
        prompts = list(self.cfg.prompts)
        with module.detached() as pipe:
            handle = put_on(pipe, concept)
            seeds = [self.cfg.seed + i for i in range(len(prompts))]
            named = [p.format(word_of(concept)) for p in prompts]
            with module.trainer.precision_plugin.forward_context():
                drawn = draw(pipe, named, seeds, self.sampling)
            handle.unload()
        self.drawn = list(zip(named, drawn))
        shown = self.path.parent / "selection"
        shown.mkdir(exist_ok=True)
        contact_sheet([drawn], shown / f"{module.global_step:04d}.png")
        pictures, texts = (
            self.scorer.images(drawn),
            self.scorer.texts([p.format(module.super_category) for p in prompts]),
        )
        image, text = (pictures @ self.real.T).mean().item(), (pictures * texts).sum(-1).mean().item()
        harmonic = 2 * image * text / (image + text) if image > 0 and text > 0 else 0.0
        scores = {"image": image, "text": text, "score": harmonic}
        module.log_dict({f"selection/{k}": v for k, v in scores.items()}, batch_size=1)
        return {"step": module.global_step, **scores}

    def state_dict(self) -> dict:
        # The best concept so far travels with the checkpoint: a run resumed in another folder has it too.
        kept = (
            torch.frombuffer(bytearray(self.path.read_bytes()), dtype=torch.uint8)
            if self.best > float("-inf")
            else None
        )
        return {"best": self.best, "history": self.history, "file": kept, "seconds": self.seconds}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.history, self.seconds = state["best"], state["history"], state.get("seconds", 0.0)
        if state["file"] is not None:
            self.path.write_bytes(bytes(state["file"].tolist()))
