"""What the baselines share: the denoising error of a concept's pictures, and prior preservation."""

import hashlib
import json
import time

import torch
from safetensors.torch import load_file
from torch import Tensor

from perfusion.atomic import write_tensors
from perfusion.baselines.learned import Learned
from perfusion.config import home
from perfusion.learning.data import Latents
from perfusion.learning.learner import Learner, masked_error
from perfusion.method.denoiser import denoiser_of, predict
from perfusion.method.fingerprint import hash_of
from perfusion.method.sampling import Sampling
from perfusion.method.text import TEMPLATES, encoded
from perfusion.method.text_encoders import text_encoder_of


class Baseline(Learner):
    """A frozen pipeline and what a method trains beside it, on the same data, templates, timesteps and mask as Perfusion.

    Subclasses define `prepare` (their Parameters), `attach`, `detach`, `tensors` (what the file holds), and where they have
    them `word` and `rows`.

    Args:
        method: conf/method's keys. learning_rate; weight_decay; clip, the largest norm of the gradient, or null;
            prior_pictures: how many pictures of the super-category the base model draws for prior preservation, 0 for
            none; prior_weight: of their error.
        sampling: how those are drawn.
    """

    leaves: type[Learned]

    def __init__(
        self, pipe, data: Latents, trigger: str, super_category: str, *, method: dict, batch_size: int, seed: int,
        sampling: Sampling, templates=TEMPLATES,
    ):  # fmt: skip
        super().__init__(pipe, data, trigger, super_category, batch_size=batch_size, seed=seed, templates=templates)
        self.method, encoder = method, text_encoder_of(pipe)
        self.tokenizer, self.encoder_of = pipe.tokenizer, lambda: encoder  # a Module's modules are saved with it
        self.prior, self.setup_seconds = None, 0.0
        if method["prior_pictures"]:
            self.prior, self.setup_seconds = prior_latents(pipe, super_category, method["prior_pictures"], sampling)
        self.prepare()
        self.attach()

    @property
    def word(self) -> str:
        """What stands for the concept in a prompt."""
        return self.trigger

    def rows(self) -> dict[int, Tensor] | None:
        """Embeddings of added tokens, as text.encode has them."""
        return None

    def concept(self, **metadata) -> Learned:
        """What is learned so far, apart from this module."""
        tensors = {name: t.detach().float().cpu().clone() for name, t in self.tensors().items()}
        return self.leaves(tensors, self.trigger, self.super_category, self.word, steps=self.global_step, **metadata)

    def about(self) -> dict:
        words = {"concept.name": self.trigger, "concept.super_category": self.super_category}
        return words | {"method": self.method["name"], "model (hash of its weights)": self.base_hash}

    def training_step(self, _, batch_index: int) -> Tensor:
        x, mask, generator, total, own = self.share(batch_index)
        words = [self.word]
        if self.prior is not None:  # as many of the super-category again, which count everywhere
            rows = torch.randint(len(self.prior), (total,), generator=generator)[own]
            x, mask = torch.cat([x, self.prior[rows].to(x)]), torch.cat([mask, torch.ones_like(mask)])
            words.append(self.super_category)
        shares = lambda draw: torch.cat([draw()[own] for _ in words])
        chosen = shares(lambda: torch.randint(len(self.templates), (total,), generator=generator)).tolist()
        prompts = [self.templates[i].format(words[n // self.batch_size]) for n, i in enumerate(chosen)]
        with torch.autocast(self.device.type, enabled=False):
            text = encoded(self.tokenizer, self.encoder_of(), prompts, self.rows())
        k = shares(lambda: torch.randint(self.noising.steps, (total,), generator=generator)).to(self.device)
        noise = shares(lambda: torch.randn((total, *x.shape[1:]), generator=generator)).to(x)
        noisy, t = self.noising.noisy(x, noise, k)
        encodings = text.e if text.given is None else text.given
        noisy = noisy.to(denoiser_of(self.pipe).dtype)
        predicted = predict(self.pipe, noisy, t, encodings, self.data.resolution, text.mask, text.pooled)
        error, n = (predicted - self.noising.target(x, noise, k)).square(), self.batch_size
        loss = masked_error(mask[:n], error[:n])
        if self.prior is not None:
            loss = loss + self.method["prior_weight"] * masked_error(mask[n:], error[n:])
        self.check_loss(loss, "method.learning_rate", self.method["learning_rate"])
        self.log("loss", loss, prog_bar=True, batch_size=len(x))
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(
            self.parameters(), lr=self.method["learning_rate"], weight_decay=self.method["weight_decay"]
        )

    def on_before_optimizer_step(self, optimizer) -> None:
        if self.method["clip"]:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.method["clip"])


@torch.no_grad()
def prior_latents(pipe, super_category: str, count: int, sampling: Sampling) -> tuple[Tensor, float]:
    """`count` latents [count, C, h, w] that the base model draws of the word, and the seconds that took; drawn once for a base."""
    asked = [hash_of(pipe), super_category, count, sampling.steps, sampling.guidance, sampling.resolution]
    asked.append(type(pipe.scheduler).__name__)
    file = home() / f"prior/{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}.safetensors"
    if not file.exists():
        started, drawn = time.perf_counter(), []
        for start in range(0, count, sampling.batch):
            seeds = range(start, min(start + sampling.batch, count))
            drawn.append(
                pipe(
                    [TEMPLATES[0].format(super_category)] * len(seeds), output_type="latent",
                    generator=[torch.Generator().manual_seed(s) for s in seeds], num_inference_steps=sampling.steps,
                    guidance_scale=sampling.guidance, height=sampling.resolution, width=sampling.resolution,
                ).images.float().cpu()
            )  # fmt: skip
        seconds = torch.tensor(time.perf_counter() - started)
        write_tensors(file, {"latents": torch.cat(drawn), "seconds": seconds}, {})
    kept = load_file(file)
    return kept["latents"], kept["seconds"].item()
