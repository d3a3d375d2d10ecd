"""What a baseline leaves behind: tensors under diffusers' names, what they are for, and how strongly they act."""

import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from perfusion.atomic import read_tensors, write_tensors
from perfusion.errors import UserError
from perfusion.method.concept import Concept
from perfusion.method.fingerprint import hash_of, tensors_hash
from perfusion.method.text import PlaceholderRows, add_placeholders
from perfusion.method.text_encoders import text_encoder_of, tokenizers_of

ABOUT = "perfusion"  # the key of the file's metadata


@dataclass
class Learned:
    """One concept as a baseline has it. `on(pipe)` puts it on a stock pipeline, at strength 1.

    word: what stands for the concept in a prompt, such as "sks teddy". tensors: what the file holds beside its metadata.
    """

    tensors: dict[str, Tensor]
    trigger: str
    super_category: str
    word: str
    steps: int = 0
    base_id: str = ""
    base_hash: str = ""
    licence: str = ""
    config: dict = field(default_factory=dict)
    lock = beta = tau = None  # Perfusion's alone
    half = True  # values in the file are float16

    check_base = Concept.check_base

    def save(self, path: str | os.PathLike) -> None:
        """Write the file at once or not at all. Raises UserError where a value is no finite number of the file's precision."""
        tensors = {k: t.to(torch.float16 if self.half else torch.float32) for k, t in self.tensors.items()}
        if bad := [name for name, t in tensors.items() if not t.isfinite().all()]:
            raise UserError(
                f"concept {self.trigger} has {bad[0]} with values that are not finite, or too large for a file; learn it "
                "again, at a lower learning_rate."
            )
        about = {k: v for k, v in asdict(self).items() if k != "tensors"} | {"method": type(self).__name__}
        about["sum"] = _sum(tensors)
        write_tensors(path, tensors, {"format": "pt", ABOUT: json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Learned":
        """Values in float32. Raises UserError for what is no file of this method, or is not as it was written."""
        tensors, about = read_tensors(path, "pt")
        try:
            about = json.loads(about[ABOUT])
            if about.pop("method") != cls.__name__:
                raise KeyError("method")
            expected = about.pop("sum", None)  # files from before have none
            learned = cls({k: v.float() for k, v in tensors.items()}, **about)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} was not written by method={cls.__name__}; give the method that wrote it."
            ) from error
        if expected not in (None, _sum(tensors)):
            raise UserError(f"{path} is not as it was written; it is damaged: learn it again, or fetch it again.")
        return learned

    def on(self, pipe) -> "Handle":
        """Raises UserError where the pipeline is of another base model."""
        self.check_base(str(pipe.config.get("_name_or_path", "")), hash_of(pipe))
        return self.handle(self, pipe)


def _sum(tensors: dict[str, Tensor]) -> str:
    return tensors_hash(tensors[name] for name in sorted(tensors))


class Handle:
    """A baseline's concept on a pipeline: its strength, and the way back. Subclasses say what `set` and `unload` do."""

    @contextmanager
    def at(self, strength: float):
        """Another strength for the length of a with-block; 0 is the base model."""
        self.set(strength)
        try:
            yield self
        finally:
            self.set(1.0)


class WordHandle(Handle):
    """A pipeline that knows one more token, whose embedding `set` chooses."""

    def __init__(self, learned: Learned, pipe):
        self.learned, self.pipe, self.encoder = learned, pipe, text_encoder_of(pipe)
        self.own = tokenizers_of(pipe)
        added = {name: add_placeholders(tokenizer, [learned.trigger]) for name, tokenizer in self.own.items()}
        self.token_id = added["tokenizer"][1][learned.trigger]
        self.rows: dict[int, Tensor] = {}
        self.set(1.0)
        self.hooks = PlaceholderRows(self.encoder, self.rows)  # it reads the rows at every call
        for name, (tokenizer, _) in added.items():
            setattr(pipe, name, tokenizer)

    def set(self, strength: float) -> None:
        self.rows[self.token_id] = self.embedding(strength)

    def unload(self) -> None:
        self.hooks.remove()
        for name, tokenizer in self.own.items():
            setattr(self.pipe, name, tokenizer)
