"""What the modules of all methods are: a frozen pipeline, a concept's latents, and the way back to the pipeline as it came."""

from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from torch import Tensor

from perfusion.errors import UserError
from perfusion.learning.data import Latents
from perfusion.learning.noising import noising_of
from perfusion.method.denoiser import check_trainable, denoiser_of
from perfusion.method.fingerprint import hash_of
from perfusion.method.text_encoders import text_encoder_of


class Learner(pl.LightningModule):
    """A pipeline whose models are frozen, and what a step of any method begins with.

    Everything random in a step follows from (seed, step), so a resumed run is the uninterrupted one. Subclasses define
    `attach` and `detach` (what they learn on the pipeline, and off it again), `concept` (what is learned so far, apart from
    the module) and `about` (what another run must have in common to go on from this one's checkpoint).

    Args:
        pipe: a stock diffusers pipeline (docs/pipelines.md). It belongs on the device that trains (models.load_pipeline's
            user puts it there). Raises UserError for one that cannot be trained with.
    """

    def __init__(
        self, pipe, data: Latents, trigger: str, super_category: str, *, batch_size: int, seed: int, templates
    ):
        super().__init__()
        self.pipe, self.data, self.trigger, self.super_category = pipe, data, trigger, super_category
        self.batch_size, self.seed, self.templates = batch_size, seed, templates
        self.of_pictures: dict[str, str] = {}  # as resume.of_pictures has it, where a checkpoint shall say it
        check_trainable(pipe)
        self.noising = noising_of(pipe.scheduler)
        self.base_hash = hash_of(pipe)  # before anything is changed
        for frozen in (denoiser_of(pipe), pipe.vae, text_encoder_of(pipe)):
            frozen.requires_grad_(False).eval()

    @contextmanager
    def detached(self):
        """The pipeline as it came, for as long as a with-block: to draw through the road users take."""
        self.detach()
        try:
            yield self.pipe
        finally:
            self.attach()

    def on_save_checkpoint(self, checkpoint) -> None:
        checkpoint["perfusion"] = self.about() | self.of_pictures

    def share(self, step: int) -> tuple[Tensor, Tensor, torch.Generator, int, slice]:
        """Latents and masks of a step, its generator, how many all processes draw, and which of these are this process's.

        Every process draws the same batch for all of them and takes its share: n processes are one with n batches.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        world, rank = (self._trainer.world_size, self._trainer.global_rank) if self._trainer else (1, 0)
        total, own = self.batch_size * world, slice(rank * self.batch_size, (rank + 1) * self.batch_size)
        x, mask = (t[own].to(self.device) for t in self.data.batch(total, generator))
        return x, mask, generator, total, own

    def check_loss(self, loss: Tensor, field: str, rate: float) -> None:
        """Raises UserError where the loss is not finite; field: the key of the learning rate."""
        if not torch.isfinite(loss):
            raise UserError(
                f"training stopped: the loss is {loss.item()} at step {self.global_step}; {field}={rate} is too high or the "
                "precision too low: halve the rate, or use trainer.precision=32-true."
            )


def masked_error(mask: Tensor, error: Tensor) -> Tensor:
    """Per image sum(mask err) / sum(mask), err averaged over channels; mean over images. error [B, C, h, w]."""
    error = error.mean(1, keepdim=True)
    return ((mask * error).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1e-6)).mean()
