"""What is learned, and its file: one small safetensors, float16, loaded strictly.

At SD 1.5's dimensions: o*_V 24,960 B + i*, C^-1 i*, embedding 4,608 B + about 1 KB of header. o*_K of the local lock is
not stored: it is W_K . text.super_encoding(...), a function of the base model and the super-category word.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perfusion.atomic import read_tensors, write_tensors
from perfusion.errors import UserError
from perfusion.method.hub import fetch

if TYPE_CHECKING:  # reading a file needs no torch, which takes seconds to import
    from torch import Tensor

FORMAT_VERSION = "1"
DETAILS_LIMIT = 2**20  # bytes, unpacked; a few thousand in practice
LOCKS = ("local", "trained")  # what a concept is trained with; the global lock is a choice at inference
TEXTS = ("trigger", "super_category", "lock", "base_id", "base_hash", "covariance_hash", "licence")
# How SDXL's textual inversions name the embeddings of its text encoders, and their widths.
SDXL = {"clip_l": 768, "clip_g": 1280}
NUMBERS = {"beta": float, "tau": float, "steps": int, "shrinkage": float}


@dataclass
class Concept:
    """One learned concept. d: width of the encodings, d_tok: of the token embeddings, d_l: of layer l.

    i_star, c_inv_i_star [d] (edit.target_key: all of C that inference needs); embedding [d_tok], of SDXL's two text
    encoders those of both, one after the other (768 + 1280, as d is);
    o_star_v, o_star_k {layer name: [d_l]}, o_star_k only where lock is "trained"; beta, tau: the training gate.
    """

    trigger: str
    super_category: str
    i_star: Tensor
    c_inv_i_star: Tensor
    embedding: Tensor
    o_star_v: dict[str, Tensor]
    o_star_k: dict[str, Tensor] | None = None
    lock: str = "local"
    beta: float = 0.75
    tau: float = 0.1
    steps: int = 0
    base_id: str = ""
    base_hash: str = ""
    covariance_hash: str = ""
    shrinkage: float = 0.0
    licence: str = ""
    config: dict = field(default_factory=dict)

    def __post_init__(self):
        _check_training(self.lock, self.beta, self.tau)
        if (self.o_star_k is not None) != (self.lock == "trained"):
            raise UserError(
                f'lock="{self.lock}" and o_star_k {"present" if self.o_star_k else "missing"} contradict; '
                'o_star_k belongs to lock="trained" and to no other.'
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write the file at once or not at all. Raises UserError for values that float16 cannot hold."""
        import torch

        # r does not see the scale of C^-1 i*, float16 does: bring its largest entry to 1.
        key = self.c_inv_i_star / self.c_inv_i_star.abs().max()
        tensors = {
            "i_star": self.i_star,
            "c_inv_i_star": key,
            "embedding": self.embedding,
            "o_star_v": torch.cat(list(self.o_star_v.values())),
        }
        if self.o_star_k is not None:
            tensors["o_star_k"] = torch.cat([self.o_star_k[name] for name in self.o_star_v])
        tensors = {name: t.detach().cpu().half().contiguous() for name, t in tensors.items()}
        for name, t in tensors.items():
            if not torch.isfinite(t).all():
                raise UserError(
                    f"{name} of {self.trigger} has values beyond float16 (or not finite); only finite values "
                    "below 65504 can be saved: train with a lower learning rate."
                )
        # Layer names and the configuration are long and repetitive: packed, they are a few hundred bytes.
        details = {"layers": {name: len(o) for name, o in self.o_star_v.items()}, "config": self.config}
        details = json.loads(json.dumps(details))  # as it is read back
        metadata = {name: str(getattr(self, name)) for name in (*TEXTS, *NUMBERS)}
        details["sum"] = _sum({name: t.numpy() for name, t in tensors.items()}, metadata, details)
        packed = zlib.compress(json.dumps(details, separators=(",", ":")).encode(), 9)
        metadata |= {"version": FORMAT_VERSION, "details": base64.b85encode(packed).decode()}
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike, **hub) -> Concept:
        """Read a file, values in float32; hub: options of hub.fetch. Raises as `read_file` does."""
        import torch

        file = read_file(path, **hub)
        tensors = {name: torch.from_numpy(values).float() for name, values in file.arrays.items()}
        split = lambda o: dict(zip(file.layers, o.split(list(file.layers.values()))))
        return cls(
            **file.fields,
            config=file.config,
            i_star=tensors["i_star"],
            c_inv_i_star=tensors["c_inv_i_star"],
            embedding=tensors["embedding"],
            o_star_v=split(tensors["o_star_v"]),
            o_star_k=split(tensors["o_star_k"]) if "o_star_k" in tensors else None,
        )

    def check_numbers(self) -> None:
        """Raises UserError for a number that is not finite, as a concept in memory may have; those of files are checked."""
        parts = {"i_star": self.i_star, "c_inv_i_star": self.c_inv_i_star, "embedding": self.embedding}
        for part in ("o_star_v", "o_star_k"):
            parts |= {f"{part} of {layer}": o for layer, o in (getattr(self, part) or {}).items()}
        for name, values in parts.items():
            if not values.isfinite().all():
                raise UserError(
                    f"concept {self.trigger} has {name} with values that are not finite; only finite ones are allowed: load or "
                    "learn it again."
                )

    def check_base(self, base_id: str, hash: str) -> None:
        """Raises UserError, naming both sides, where the concept was learned on another base model."""
        if self.base_hash != hash:
            raise UserError(
                f"concept {self.trigger} was learned on base {self.base_id} (hash {self.base_hash}), this "
                f"pipeline is {base_id} (hash {hash}); load that base, in float32 or float16."
            )


@dataclass
class ConceptFile:
    """What a concept file holds, read in milliseconds. fields: TEXTS and NUMBERS; layers: {name: d_l}; arrays: {tensor: values}."""

    path: Path
    fields: dict
    layers: dict[str, int]
    config: dict
    arrays: dict[str, np.ndarray]


def read_file(path: str | os.PathLike, **hub) -> ConceptFile:
    """Read and check a concept file, user/repo or hf://user/repo[/file] being fetched first; no model library is imported.

    Raises UserError, naming both sides, for all but a whole, valid concept.
    """
    path = fetch(path, **hub)
    arrays, metadata = read_tensors(path, "np")
    if "version" not in metadata:
        raise UserError(
            f"{path} is no concept file of Perfusion; give one that perfusion train wrote with method=perfusion (a baseline's "
            "is read by perfusion evaluate alone, with its method=NAME)."
        )
    if metadata["version"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has concept format version {metadata['version']}, this program reads "
            f"{FORMAT_VERSION}; save the concept again, or use the program that wrote it."
        )
    _same_keys(path, "metadata", metadata, {"version", "details", *TEXTS, *NUMBERS})
    trained = {"o_star_k"} if metadata["lock"] == "trained" else set()
    _same_keys(path, "tensors", arrays, {"i_star", "c_inv_i_star", "embedding", "o_star_v"} | trained)
    try:
        details = json.loads(_unpacked(base64.b85decode(metadata["details"])))
        numbers = {name: kind(metadata[name]) for name, kind in NUMBERS.items()}
        layers = {str(name): int(width) for name, width in details["layers"].items()}
        config, expected = details["config"], details.pop("sum", None)  # older files have none
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, zlib.error) as error:
        raise UserError(
            f"{path} has unreadable metadata ({error}); the file is damaged: save or fetch it again."
        ) from error
    d, total = arrays["i_star"].size, sum(layers.values())
    wanted = {
        "i_star": (d,),
        "c_inv_i_star": (d,),
        "embedding": (arrays["embedding"].size,),
        "o_star_v": (total,),
        "o_star_k": (total,),
    }
    for name, values in arrays.items():
        if values.shape != wanted[name]:
            raise UserError(
                f"{path} has {name} of shape {values.shape} where its other parts need "
                f"{wanted[name]}; the file is damaged: save or fetch it again."
            )
        if not np.isfinite(values).all():
            raise UserError(
                f"{path} has {name} with values that are not finite; only finite ones are allowed: save or fetch it again."
            )
    _check_training(metadata["lock"], numbers["beta"], numbers["tau"])
    if expected not in (None, _sum(arrays, {name: metadata[name] for name in (*TEXTS, *NUMBERS)}, details)):
        raise UserError(f"{path} is not as it was written (its sum is another); it is damaged: save or fetch it again.")
    return ConceptFile(path, {name: metadata[name] for name in TEXTS} | numbers, layers, config, arrays)


def _unpacked(packed: bytes) -> bytes:
    """As zlib.decompress; ValueError beyond DETAILS_LIMIT, since a hostile file of some KB could unpack to gigabytes."""
    unpack = zlib.decompressobj()
    data = unpack.decompress(packed, DETAILS_LIMIT)
    if not unpack.eof:
        raise ValueError(f"details are cut off, or longer than the {DETAILS_LIMIT} bytes allowed")
    return data


def _sum(arrays: dict[str, np.ndarray], metadata: dict[str, str], details: dict) -> str:
    """A digest of all that a file holds, so that no number changes unseen."""
    digest = hashlib.sha256(json.dumps([sorted(metadata.items()), details], sort_keys=True).encode())
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype} {values.shape} ".encode() + values.tobytes())
    return digest.hexdigest()[:8]


def _check_training(lock: str, beta: float, tau: float) -> None:
    if lock not in LOCKS:
        raise UserError(f'lock="{lock}" is unknown; a concept is trained with one of: {", ".join(LOCKS)}.')
    if not (math.isfinite(beta) and 0 < tau < math.inf):
        raise UserError(f"beta={beta}, tau={tau}: beta must be finite and tau positive.")


def _same_keys(path: Path, what: str, keys: Iterable[str], wanted: set[str]) -> None:
    missing, unknown = sorted(wanted - set(keys)), sorted(set(keys) - wanted)
    if missing or unknown:
        raise UserError(
            f"{path} has {what} {sorted(keys)}, wanted are {sorted(wanted)}: missing {missing}, unknown "
            f"{unknown}; the file is not a concept, or damaged: save or fetch it again."
        )
