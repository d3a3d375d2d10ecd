"""PerfusionModule: a frozen text-to-image model, and the few numbers that learn a concept (method.md 4)."""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from perfusion.learning.data import Latents
from perfusion.learning.learner import Learner, masked_error
from perfusion.method.concept import Concept
from perfusion.method.denoiser import denoiser_of, predict
from perfusion.method.edit import augment, target_key
from perfusion.method.layers import cross_attentions, lock_o_star_k, locked, widen
from perfusion.method.text import (
    TEMPLATES,
    Encoded,
    add_placeholders,
    encoded,
    mean_at,
    super_encoding,
    word_embedding,
)
from perfusion.method.text_encoders import text_encoder_of


class PerfusionModule(Learner):
    """Trains the embedding [d_tok] and o*_V {layer: [d_l]} (and o*_K under lock="trained"); i* follows as an average.

    The denoising error is weighted by the soft mask: per image sum(m err) / sum(m), err averaged over channels.

    Args:
        pipe: see `Learner`; its denoiser is widened while attached, and never trained.
        C_inv: [d, d] from edit.inverse_metric.
        learning_rate: {"o_star", "embedding", "relative"}: relative multiplies o_star's by each layer's starting RMS.
        i_star_decay: .99; i* <- decay i* + (1 - decay) mean encoding at the concept's token, once an optimiser step.
        masked_prior: outside the mask, the frozen model's prediction for the super-category's prompt is the target.
        i_star_gradient: straight-through; i* keeps its value and takes the gradient of the batch's mean encoding
            (under DDP, of each process's own).
    """

    def __init__(
        self,
        pipe,
        data: Latents,
        trigger: str,
        super_category: str,
        C_inv: Tensor,
        *,
        beta: float,
        tau: float,
        lock: str,
        batch_size: int,
        learning_rate: dict,
        i_star_decay: float,
        seed: int,
        masked_prior: bool = False,
        i_star_gradient: bool = False,
        templates=TEMPLATES,
    ):
        super().__init__(pipe, data, trigger, super_category, batch_size=batch_size, seed=seed, templates=templates)
        self.beta, self.tau, self.lock = beta, tau, lock
        self.learning_rate, self.i_star_decay = learning_rate, i_star_decay
        self.masked_prior, self.i_star_gradient = masked_prior, i_star_gradient
        text_encoder, denoiser = text_encoder_of(pipe), denoiser_of(pipe)
        self.tokenizer, ids = add_placeholders(pipe.tokenizer, [trigger])
        self.token_id = ids[trigger]
        # Not an attribute of its own: a Module's modules are saved with it.
        self.encode = partial(encoded, self.tokenizer, text_encoder)
        encoding = super_encoding(pipe.tokenizer, text_encoder, super_category)
        self.register_buffer("C_inv", C_inv.to(encoding), persistent=False)
        self.register_buffer("i_star", encoding.clone())
        self.register_buffer("i_star_start", encoding.clone(), persistent=False)
        self.embedding = nn.Parameter(word_embedding(pipe.tokenizer, text_encoder, super_category))
        self.layers = list(cross_attentions(denoiser))
        values = locked(denoiser, "to_v", encoding[None])
        self.o_star_v = nn.ParameterList([nn.Parameter(values[name]) for name in self.layers])
        keys = lock_o_star_k(denoiser, encoding[None])
        self.o_star_k = nn.ParameterList(
            [nn.Parameter(keys[name]) for name in self.layers] if lock == "trained" else []
        )
        self._locked = None if lock == "trained" else keys
        self._sum, self._count = torch.zeros_like(encoding), 0
        self.attach()

    # -- the widened model --------------------------------------------------------------------------------------------
    def attach(self) -> None:
        """Widen the pipeline's cross-attentions around the very Parameters that are trained."""
        o_star_k = dict(zip(self.layers, self.o_star_k)) if self._locked is None else self._locked
        o_star_v = dict(zip(self.layers, self.o_star_v))
        self.widened = widen(denoiser_of(self.pipe), self.i_star[None], o_star_v, o_star_k)

    def detach(self) -> None:
        """Give the pipeline its own layers back."""
        self.widened.restore()

    def concept(self, **metadata) -> Concept:
        """What is learned so far, apart from this module."""
        copies = lambda parameters: {n: p.detach()[0].float().cpu().clone() for n, p in zip(self.layers, parameters)}
        return Concept(
            self.trigger, self.super_category, self.i_star.cpu().clone(), target_key(self.C_inv, self.i_star).cpu(),
            self.embedding.detach().cpu().clone(), copies(self.o_star_v),
            copies(self.o_star_k) if self.lock == "trained" else None,
            lock=self.lock, beta=self.beta, tau=self.tau, steps=self.global_step, **metadata,
        )  # fmt: skip

    def about(self) -> dict:
        return about(self.trigger, self.super_category, self.lock, self.base_hash)

    # -- training -----------------------------------------------------------------------------------------------------
    def on_load_checkpoint(self, checkpoint) -> None:
        # The buffer i_star is loaded after this; the widened layers read it at the next step.
        self.widened.set_i_star(checkpoint["state_dict"]["i_star"][None])

    def training_step(self, _, batch_index: int) -> Tensor:
        x, mask, generator, total, own = self.share(batch_index)
        chosen = torch.randint(len(self.templates), (total,), generator=generator)[own]
        prompts = [self.templates[i].format(self.trigger) for i in chosen]
        with torch.autocast(self.device.type, enabled=False):  # energies want all the precision that the encodings have
            text = self.encode(prompts, {self.token_id: self.embedding})
        e, ids = text.e, text.ids
        here = mean_at(e.float(), ids == self.token_id)
        i_star = here + (self.i_star - here).detach() if self.i_star_gradient else self.i_star
        here = here.detach()
        self._sum, self._count = self._sum.to(here) + here, self._count + 1

        key = target_key(self.C_inv, i_star)
        gated = augment(e, i_star[None], key[None], torch.tensor([[self.beta]]), torch.tensor([[self.tau]]))
        k = torch.randint(self.noising.steps, (total,), generator=generator)[own].to(self.device)
        noise = torch.randn((total, *x.shape[1:]), generator=generator)[own].to(x)
        noisy, t = self.noising.noisy(x, noise, k)
        noisy, target = noisy.to(denoiser_of(self.pipe).dtype), self.noising.target(x, noise, k)
        with self.widened.i_star_as(i_star[None]) if self.i_star_gradient else nullcontext():
            predicted = self.predict(noisy, t, text, text.with_columns(gated))
        loss = masked_error(mask, (predicted - target).square())
        if self.masked_prior:
            loss = loss + masked_error(1 - mask, (predicted - self._prior(noisy, t, chosen)).square())
        self.check_loss(loss, "learning_rate.o_star", self.learning_rate["o_star"])
        self.log("loss", loss, prog_bar=True, batch_size=len(x))
        at = (ids == self.token_id).to(gated.device)
        self.log("gate", gated[..., -2][at].mean().detach(), batch_size=len(x))  # at the concept's own token
        moved = (self.i_star - self.i_star_start).norm() / self.i_star_start.norm()
        self.log("i_star_moved", moved, batch_size=len(x))
        return loss

    def predict(self, noisy: Tensor, t: Tensor, text: Encoded, encodings: Tensor) -> Tensor:
        """`denoiser.predict` for prompts, at the pictures' size."""
        return predict(self.pipe, noisy, t, encodings, self.data.resolution, text.mask, text.pooled)

    @torch.no_grad()
    def _prior(self, noisy: Tensor, t: Tensor, chosen: Tensor) -> Tensor:
        """The frozen model's prediction for the same prompts with the super-category's word."""
        prompts = [self.templates[i].format(self.super_category) for i in chosen]
        with torch.autocast(self.device.type, enabled=False):
            text = self.encode(prompts, None)
        with self.widened.paused():
            return self.predict(noisy, t, text, text.e if text.given is None else text.given)

    @torch.no_grad()
    def optimizer_step(self, *args, **kwargs) -> None:
        with torch.enable_grad():
            super().optimizer_step(*args, **kwargs)
        # Once per optimiser step, however many micro-batches it took; the mean over processes under DDP.
        mean = self.trainer.strategy.reduce(self._sum / self._count, reduce_op="mean")
        self.i_star.lerp_(mean.to(self.i_star), 1 - self.i_star_decay)
        self.widened.set_i_star(self.i_star[None])
        self._sum, self._count = torch.zeros_like(self.i_star), 0

    def configure_optimizers(self):
        rate = self.learning_rate
        scale = lambda p: p.detach().square().mean().sqrt().item() if rate["relative"] else 1.0
        groups = [{"params": [self.embedding], "lr": rate["embedding"]}]
        groups += [{"params": [p], "lr": rate["o_star"] * scale(p)} for p in [*self.o_star_v, *self.o_star_k]]
        return torch.optim.AdamW(groups, weight_decay=0.0)


def about(trigger: str, super_category: str, lock: str, base_hash: str | None = None) -> dict:
    """What a run must have in common with the one it goes on from: {the key that says it: its value}."""
    of_weights = {"model (hash of its weights)": base_hash} if base_hash else {}
    return {"concept.name": trigger, "concept.super_category": super_category, "lock": lock} | of_weights
