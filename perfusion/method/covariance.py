"""C, the uncentred second moment of token encodings over many captions: streamed, resumable, cached.

docs/method.md 2.5, 2.6.
"""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from perfusion.atomic import write_tensors
from perfusion.errors import UserError, install
from perfusion.method.fingerprint import tensors_hash

TOKENS = ("valid", "content", "all")
PUBLISHED = "perfusion_pytorch"  # in place of a file's path: the C that this package ships


@dataclass
class Covariance:
    """C [d, d] in float64, the number of tokens it is the mean over, and the hash of all it was made from.

    encoder: the hash of the text encoder it was measured on; "" where that is not known.
    """

    C: Tensor
    count: int
    hash: str
    encoder: str = ""

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue, before shrinkage."""
        eigenvalues = torch.linalg.eigvalsh(self.C)
        return (eigenvalues[-1] / eigenvalues[0]).item()

    def save(self, path: str | os.PathLike) -> None:
        """Write the file at once or not at all."""
        _write(Path(path), self.C, {"count": str(self.count), "hash": self.hash, "encoder": self.encoder})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Covariance":
        """Read a file of `save`; "perfusion_pytorch" is SD 1.5's C published in that package (see `published`).

        Raises UserError for what is not there, not a covariance, not finite or not symmetric.
        """
        if str(path) == PUBLISHED:
            return published()
        if not Path(path).is_file():
            raise UserError(
                f"covariance.file={path} does not exist; give a file that `perfusion covariance` wrote, "
                f"{PUBLISHED} for SD 1.5's published one, or null to have it measured."
            )
        try:
            C, metadata = _read(Path(path))
            C, count = C.double(), int(metadata.get("count", 0))
        except (OSError, ValueError) as error:
            raise UserError(
                f"covariance.file={path} is not a covariance ({error}); give a file that `perfusion covariance` wrote."
            ) from error
        _check(C, path)
        hash = metadata.get("hash") or tensors_hash([C])
        return cls(C, count, hash, metadata.get("encoder", ""))

    def check_encoder(self, text_encoder, where: str) -> None:
        """Raises UserError where this C is of other encodings than the text encoder's."""
        self.check_width(text_encoder.config.hidden_size, where)
        weights = text_encoder.state_dict().values()
        hash = tensors_hash(weights)
        rounded = any(w.dtype == torch.bfloat16 for w in weights)  # the hash knows float32 and float16 alone
        if self.encoder not in ("", hash) and not rounded:
            raise UserError(
                f"covariance.file={where} is of text encoder {self.encoder}, this model's is {hash}: measure it with "
                "`perfusion covariance` on this model."
            )

    def check_width(self, width: int, where: str) -> None:
        """Raises UserError where the encodings of this C are not `width` wide; no weights are needed."""
        if len(self.C) != width:
            raise UserError(
                f"covariance.file={where} is {len(self.C)} wide, the encodings of this model are {width} wide: measure "
                "it with `perfusion covariance` on this model."
            )


def published() -> Covariance:
    """SD 1.5's C (CLIP ViT-L/14, 768 x 768) as the package perfusion-pytorch ships it (MIT, made by Brad Vidler).

    The package is found, not imported. Raises UserError where it is not installed.
    """
    spec = importlib.util.find_spec(PUBLISHED)
    if spec is None or spec.origin is None:
        raise UserError(
            f"covariance.file={PUBLISHED} needs the package that holds it, which is not installed; "
            f"install it with {install('covariance')}."
        )
    path = Path(spec.origin).parent / "data/covariance_CLIP_ViT-L-14.pt"
    C = torch.load(path, weights_only=True, map_location="cpu").double()
    _check(C, path)
    return Covariance(C, 0, tensors_hash([C]))


def _check(C: Tensor, path) -> None:
    square = C.dim() == 2 and C.shape[0] == C.shape[1] > 0
    if not square or not torch.isfinite(C).all() or (C - C.T).abs().max() > 1e-6 * C.abs().max():
        raise UserError(
            f"covariance.file={path} holds a {' x '.join(map(str, C.shape))} tensor; a finite, square, symmetric one "
            "is allowed: measure it again with `perfusion covariance`."
        )


def _write(path: Path, C: Tensor, metadata: dict[str, str]) -> None:
    write_tensors(path, {"C": C}, metadata | {"sum": _sum(C, metadata)})


def _read(path: Path) -> tuple[Tensor, dict[str, str]]:
    """C and the metadata of `_write`. Raises ValueError, with the reason, for anything else; older files have no sum."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if list(file.keys()) != ["C"]:
                raise ValueError(f"it holds {sorted(file.keys())}, not C alone")
            C = file.get_tensor("C")
    except (SafetensorError, TypeError, AttributeError) as error:  # of a kind of number that torch has not
        raise ValueError(" ".join(str(error).split())) from error
    expected = metadata.pop("sum", None)
    if not C.is_floating_point() or expected not in (None, _sum(C, metadata)):
        raise ValueError("it is damaged: its sum is another")
    return C, metadata


def _sum(C: Tensor, metadata: dict[str, str]) -> str:
    """A digest of all that a file holds, so that no number changes unseen."""
    values = C.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{C.dtype} {tuple(C.shape)} {sorted(metadata.items())} ".encode() + values).hexdigest()[:16]


def token_mask(ids: Tensor, attention_mask: Tensor, tokens: str, tokenizer) -> Tensor:
    """Which tokens enter C, bool [B, T]: "valid" (BOS to EOS), "content" (those between) or "all" (padding too)."""
    if tokens == "all":
        return torch.ones_like(ids, dtype=torch.bool)
    valid = attention_mask.bool()
    if tokens == "content":  # T5 has no BOS, Gemma writes no EOS
        position = torch.arange(ids.shape[1], device=ids.device)
        first, last = position == 0, position == valid.sum(1, keepdim=True) - 1
        ends = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None]
        return valid & ~((first | last) & torch.isin(ids, torch.tensor(ends, device=ids.device)))
    return valid


@torch.no_grad()
def second_moment(
    captions: Iterable[str],
    tokenizer,
    text_encoder,
    tokens: str = "valid",
    batch_size: int = 256,
    cache_dir: str | os.PathLike | None = None,
    shipped: str | os.PathLike | None = None,
    progress: bool = True,
    state: str | os.PathLike | None = None,
    save_every: int = 16,
    output: str | os.PathLike | None = None,
) -> Covariance:
    """C = mean of e e^T over the captions' tokens, in float64, one batch at a time; the captions may be a stream.

    cache_dir: the result is kept there under the hash of text encoder, captions and tokens, so that the same question
    is computed once (the captions are read twice then, so a list or a file and not a generator; captions that have an
    `identity`, a text that no others have, are known by it and read only if need be). shipped: a folder of such results
    that is only read. state: a file that holds the running sum, written every `save_every` batches and
    removed at the end; a later call with the same captions goes on from it, to the same last bit. By default beside the
    cache. output: a file that the result is written to, before the state goes.

    Raises UserError for an unknown `tokens`, no captions, or a state of other captions.
    """
    if tokens not in TOKENS:
        raise UserError(f'tokens="{tokens}" is unknown; allowed are: {", ".join(TOKENS)}.')
    encoder = tensors_hash(text_encoder.state_dict().values())
    start = hashlib.sha256(f"{tokens} {encoder}".encode())
    path = None
    if cache_dir:
        asked, identity = start.copy(), getattr(captions, "identity", None)
        for text in [identity] if identity else captions:
            asked.update(f"{text}\n".encode())
        path = Path(cache_dir) / f"covariance-{asked.hexdigest()[:32]}.safetensors"
        for folder in (shipped, cache_dir):
            if folder and (Path(folder) / path.name).is_file():
                measured = Covariance.load(Path(folder) / path.name)
                path.with_suffix(".state").unlink(missing_ok=True)  # left by a kill between the two
                return Covariance(measured.C, measured.count, measured.hash, encoder)
        state = state or path.with_suffix(".state")

    device, limit = text_encoder.get_input_embeddings().weight.device, tokenizer.model_max_length
    width = text_encoder.config.hidden_size
    C, count, seen, digest = torch.zeros(width, width, dtype=torch.float64, device=device), 0, 0, start
    stream = iter(captions)
    if state and Path(state).is_file():
        C, count, seen = _resume(Path(state), stream, digest)
        C = C.to(device)
    bar = tqdm(
        desc="covariance",
        unit=" captions",
        initial=seen,
        total=len(captions) if isinstance(captions, Sized) else None,
        disable=not progress,
        leave=False,
        mininterval=0.1 if sys.stderr.isatty() else 30,  # a log file is not redrawn
    )
    for chunk in _batched(stream, save_every * batch_size):
        for caption in chunk:
            digest.update(f"{caption}\n".encode())
        # The attention is causal or masked, so padding never changes what comes before it: pad only as far as is needed.
        # Captions of like length share a batch.
        for part in _batched(iter(sorted(chunk, key=len)), batch_size):
            padding = "max_length" if tokens == "all" else "longest"
            if hasattr(text_encoder, "tokenize"):  # prepares prompts itself (text_encoders.Captioned)
                whole = text_encoder.tokenize(tokenizer, part, padding).to(device)
                e, ids = text_encoder(whole)[0], text_encoder.kept(whole)
                mask = ids != tokenizer.pad_token_id
            else:
                batch = tokenizer(part, padding=padding, max_length=limit, truncation=True, return_tensors="pt").to(
                    device
                )
                e, ids, mask = text_encoder(batch.input_ids)[0], batch.input_ids, batch.attention_mask
            e = e[token_mask(ids, mask, tokens, tokenizer)].double()
            C, count = C + e.T @ e, count + len(e)
            bar.update(len(part))
        seen += len(chunk)
        if state:
            _write(Path(state), C.cpu(), {"count": str(count), "seen": str(seen), "digest": digest.hexdigest()})
    bar.close()
    if not count:
        raise UserError("captions is empty; at least one caption is needed, and about 100,000 for a good C.")
    measured = Covariance((C / count).cpu(), count, digest.hexdigest()[:32], encoder)
    for place in (path, output):
        if place:
            measured.save(place)
    if state:
        Path(state).unlink(missing_ok=True)  # another run that measures the same may have been faster
    return measured


def _batched(stream: Iterator[str], size: int) -> Iterator[list[str]]:
    while batch := list(islice(stream, size)):
        yield batch


def _resume(state: Path, stream, digest) -> tuple[Tensor, int, int]:
    """The running sum [d, d], its tokens and its captions; moves `stream` and `digest` past these captions."""
    try:
        C, metadata = _read(state)
        count, seen = int(metadata["count"]), int(metadata["seen"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{state} is not the state of a measurement ({error}); delete it to start anew.") from error
    for caption in islice(stream, seen):
        digest.update(f"{caption}\n".encode())
    if digest.hexdigest() != metadata["digest"]:
        raise UserError(
            f"{state} was left by a run over other captions, tokens or another text encoder than these; "
            "give what it was started with, or delete it to start anew."
        )
    return C, count, seen
