"""What is learned, and its file: one small safetensors, float16, loaded strictly.

At SD 1.5's dimensions: o*_V 24,960 B + i*, C^-1 i*, embedding 4,608 B + about 1 KB of header. o*_K of the local lock is
not stored: it is W_K . text.super_encoding(...), a function of the base model and the super-category word.
"""

import base64
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from perfusion.errors import UserError
from perfusion.hub import fetch
from perfusion.projections import cross_attentions
from perfusion.remember import remembered
from perfusion.towers import text_encoder_of
from perfusion.whole import whole

FORMAT_VERSION = "1"
LOCKS = ("local", "trained")  # what a concept is trained with; the global lock is a choice at inference
TEXTS = ("trigger", "super_category", "lock", "base_id", "base_hash", "covariance_hash", "licence")
NUMBERS = {"beta": float, "tau": float, "steps": int, "shrinkage": float}


def tensors_hash(tensors: Iterable[Tensor]) -> str:
    """First 128 bits of the sha256 of shapes and values, as hex. Values are taken in float16, so that the same weights
    loaded in float32 or float16 have one hash; names are left out, because libraries rename modules."""
    digest = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu()
        tensor = tensor.half() if tensor.is_floating_point() else tensor
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def base_hash(text_encoder: nn.Module, denoiser: nn.Module) -> str:
    """Hash of what a concept depends on: the text encoder's weights and every cross-attention's W_K and W_V.

    Of LoRAs that are loaded beside it a concept does not depend: they are left out."""
    return tensors_hash(base_weights(text_encoder, denoiser))


def base_weights(text_encoder: nn.Module, denoiser: nn.Module) -> list[Tensor]:
    layers = cross_attentions(denoiser).values()
    text = [w for name, w in text_encoder.state_dict().items() if "lora_" not in name]
    return [*text, *(w for a in layers for w in (a.to_k.weight, a.to_v.weight))]


def hash_of(pipe) -> str:
    """`base_hash` of a pipeline, computed once for as long as its weights stay (or of those before a cast)."""
    if hasattr(pipe, "_perfusion_base_hash"):
        return pipe._perfusion_base_hash
    parts = text_encoder_of(pipe), pipe.unet
    return remembered(pipe, "hash", base_weights(*parts), lambda: base_hash(*parts))


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
        if self.lock not in LOCKS:
            raise UserError(f'lock="{self.lock}" is unknown; a concept is trained with one of: {", ".join(LOCKS)}.')
        if (self.o_star_k is not None) != (self.lock == "trained"):
            raise UserError(
                f'lock="{self.lock}" and o_star_k {"present" if self.o_star_k else "missing"} contradict; '
                'o_star_k belongs to lock="trained" and to no other.'
            )
        if not (math.isfinite(self.beta) and 0 < self.tau < math.inf):
            raise UserError(f"beta={self.beta}, tau={self.tau}: beta must be finite and tau positive.")

    def save(self, path: str | os.PathLike) -> None:
        """Write the file at once or not at all. Raises UserError for values that float16 cannot hold."""
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
        packed = zlib.compress(json.dumps(details, separators=(",", ":")).encode(), 9)
        metadata = {"version": FORMAT_VERSION, "details": base64.b85encode(packed).decode()}
        metadata |= {name: str(getattr(self, name)) for name in (*TEXTS, *NUMBERS)}
        with whole(path) as part:
            save_file(tensors, part, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Concept":
        """Read a file, values in float32; hf://user/repo[/file] is fetched first.

        Raises UserError, naming both sides, for all but a whole, valid concept.
        """
        path = fetch(path)
        if not path.is_file():
            raise UserError(f"concept file {path} does not exist; give the path of a saved .safetensors concept.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(
                f"{path} is not a safetensors file ({error}); only safetensors concepts are read, "
                "never pickles (.pt, .bin, .ckpt)."
            ) from error
        if metadata.get("version") != FORMAT_VERSION:
            raise UserError(
                f"{path} has concept format version {metadata.get('version')}, this program reads "
                f"{FORMAT_VERSION}; save the concept again, or use the program that wrote it."
            )
        _same_keys(path, "metadata", metadata, {"version", "details", *TEXTS, *NUMBERS})
        trained = {"o_star_k"} if metadata["lock"] == "trained" else set()
        _same_keys(path, "tensors", tensors, {"i_star", "c_inv_i_star", "embedding", "o_star_v"} | trained)
        try:
            details = json.loads(zlib.decompress(base64.b85decode(metadata["details"])))
            numbers = {name: kind(metadata[name]) for name, kind in NUMBERS.items()}
            layers = {str(name): int(width) for name, width in details["layers"].items()}
            config = details["config"]
        except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
            raise UserError(
                f"{path} has unreadable metadata ({error}); the file is damaged: save or fetch it again."
            ) from error
        d, total = tensors["i_star"].numel(), sum(layers.values())
        wanted = {
            "i_star": (d,),
            "c_inv_i_star": (d,),
            "embedding": (tensors["embedding"].numel(),),
            "o_star_v": (total,),
            "o_star_k": (total,),
        }
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != wanted[name]:
                raise UserError(
                    f"{path} has {name} of shape {tuple(tensor.shape)} where its other parts need "
                    f"{wanted[name]}; the file is damaged: save or fetch it again."
                )
            if not torch.isfinite(tensor).all():
                raise UserError(
                    f"{path} has {name} with values that are not finite; only finite ones are allowed: "
                    "save or fetch it again."
                )
        split = lambda o: dict(zip(layers, o.split(list(layers.values()))))
        return cls(
            **{name: metadata[name] for name in TEXTS},
            **numbers,
            config=config,
            i_star=tensors["i_star"],
            c_inv_i_star=tensors["c_inv_i_star"],
            embedding=tensors["embedding"],
            o_star_v=split(tensors["o_star_v"]),
            o_star_k=split(tensors["o_star_k"]) if trained else None,
        )

    def check_base(self, base_id: str, hash: str) -> None:
        """Raises UserError, naming both sides, where the concept was learned on another base model."""
        if self.base_hash != hash:
            raise UserError(
                f"concept {self.trigger} was learned on base {self.base_id} (hash {self.base_hash}), this "
                f"pipeline is {base_id} (hash {hash}); load that base, in float32 or float16."
            )


def _same_keys(path: Path, what: str, found: Iterable[str], wanted: set[str]) -> None:
    missing, unknown = sorted(wanted - set(found)), sorted(set(found) - wanted)
    if missing or unknown:
        raise UserError(
            f"{path} has {what} {sorted(found)}, wanted are {sorted(wanted)}: missing {missing}, unknown "
            f"{unknown}; the file is not a concept, or damaged: save or fetch it again."
        )
