"""Textual Inversion (Gal et al. 2023): one word embedding is learned. Settings after diffusers' examples/textual_inversion.

The file is what `pipe.load_textual_inversion` of diffusers reads: {"teddy*": [1, d]}, of SDXL {"clip_l", "clip_g"}. Beside
it lie embeddings of earlier steps, as NAME-steps-STEP.safetensors: the strength chooses among them, 0 the start.
"""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from perfusion.atomic import read_tensors
from perfusion.baselines.baseline import Baseline
from perfusion.baselines.learned import ABOUT, Learned, WordHandle
from perfusion.errors import UserError
from perfusion.method.concept import SDXL
from perfusion.method.text import add_placeholders, towers, word_embedding

KEPT = 8  # embeddings along the way


class TextualInversionHandle(WordHandle):
    def embedding(self, strength: float) -> Tensor:
        """Of the step nearest to so large a share of all; of none, the super-category's."""
        learned = self.learned
        if not strength:
            return word_embedding(self.own["tokenizer"], self.encoder, learned.super_category)
        known = learned.earlier | {learned.steps: learned.tensors}
        nearest = known[min(known, key=lambda step: abs(step - strength * learned.steps))]
        return torch.cat([*nearest.values()], -1)[0]


@dataclass
class TextualInversion(Learned):
    """earlier: {step: tensors} of the steps before."""

    earlier: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    half = False
    handle = TextualInversionHandle

    def save(self, path: str | os.PathLike) -> None:
        path = Path(path)
        for step, tensors in self.earlier.items():
            early = replace(self, tensors=tensors, steps=step, earlier={})
            Learned.save(early, path.with_name(f"{path.stem}-steps-{step}{path.suffix}"))
        Learned.save(replace(self, earlier={}), path)
        for step, older in _earlier(path).items():  # of another training that this one replaced
            if step not in self.earlier:
                older.unlink()

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TextualInversion":
        """Any file in diffusers' format. One that this program did not write has no super_category, until it is told."""
        path = Path(path)
        tensors, metadata = read_tensors(path, "pt")
        if ABOUT not in metadata:
            names = [*tensors]
            if names != ["clip_g", "clip_l"] and len(names) != 1:
                raise UserError(
                    f"{path} holds {names}; one embedding, or clip_l and clip_g, is what diffusers' format has."
                )
            word = names[0].strip("<>") if len(names) == 1 else path.stem
            order = SDXL if len(names) == 2 else names
            return cls({name: torch.atleast_2d(tensors[name].float()) for name in order}, word, "", word, 1)
        learned = super().load(path)
        for other in _earlier(path).values():
            early = super().load(other)
            learned.earlier[early.steps] = early.tensors
        if set(learned.tensors) == set(SDXL):
            learned.tensors = {name: learned.tensors[name] for name in SDXL}
        return learned

    def check_base(self, base_id: str, hash: str) -> None:
        if self.base_hash:  # other programs' files do not say
            super().check_base(base_id, hash)


def _earlier(path: Path) -> dict[int, Path]:
    """{step: its file} of a training's earlier steps, which lie beside its own."""
    name = re.compile(rf"{re.escape(path.stem)}-steps-(\d+){re.escape(path.suffix)}")
    return {int(match[1]): p for p in path.parent.iterdir() if (match := name.fullmatch(p.name))}


class TextualInversionModule(Baseline):
    """Trains the embedding [d] of one new token, which starts as the super-category's."""

    leaves = TextualInversion

    def prepare(self) -> None:
        self.tokenizer, ids = add_placeholders(self.pipe.tokenizer, [self.trigger])
        self.token_id, encoder = ids[self.trigger], self.encoder_of()
        self.embedding = nn.Parameter(word_embedding(self.pipe.tokenizer, encoder, self.super_category))
        widths = [tower.get_input_embeddings().weight.shape[1] for tower in towers(encoder)]
        self.names = dict(zip(SDXL if len(widths) == 2 else [self.trigger], widths))
        self.earlier: dict[int, dict[str, Tensor]] = {}

    def rows(self) -> dict[int, Tensor]:
        return {self.token_id: self.embedding}

    def attach(self) -> None:
        """Nothing of the pipeline is changed in training."""

    detach = attach

    def tensors(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.embedding[None].split(list(self.names.values()), -1)))

    def concept(self, **metadata) -> TextualInversion:
        earlier = {step: t for step, t in self.earlier.items() if step < self.global_step}
        return replace(super().concept(**metadata), earlier=earlier)

    def on_train_batch_end(self, outputs, batch, batch_index) -> None:
        step, every = self.global_step, max(1, self.trainer.max_steps // KEPT)
        if step and step % every == 0:
            self.earlier[step] = {name: t.detach().float().cpu().clone() for name, t in self.tensors().items()}

    def on_save_checkpoint(self, checkpoint) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["earlier"] = self.earlier

    def on_load_checkpoint(self, checkpoint) -> None:
        self.earlier = checkpoint["earlier"]
