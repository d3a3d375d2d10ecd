"""C, the uncentred second moment of token encodings over many captions, streamed and cached (method.md 2.5, 2.6)."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from perfusion.concept import tensors_hash
from perfusion.errors import UserError

TOKENS = ("valid", "content", "all")


@dataclass
class Covariance:
    """C [d, d] in float64, the number of tokens it is the mean over, and the hash of all it was made from."""

    C: Tensor
    count: int
    hash: str

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue, before shrinkage."""
        eigenvalues = torch.linalg.eigvalsh(self.C)
        return (eigenvalues[-1] / eigenvalues[0]).item()


def token_mask(ids: Tensor, attention_mask: Tensor, tokens: str) -> Tensor:
    """Which tokens enter C, bool [B, T]: "valid" (BOS to EOS), "content" (those between) or "all" (padding too)."""
    if tokens == "all":
        return torch.ones_like(ids, dtype=torch.bool)
    valid = attention_mask.bool()
    if tokens == "content":
        length = valid.sum(1, keepdim=True)
        position = torch.arange(ids.shape[1], device=ids.device)
        return (position > 0) & (position < length - 1)
    return valid


@torch.no_grad()
def second_moment(
    captions: list[str],
    tokenizer,
    text_encoder,
    tokens: str = "valid",
    batch_size: int = 256,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> Covariance:
    """C = mean of e e^T over the captions' tokens, in float64, one batch at a time.

    Cached in cache_dir under the hash of text encoder, captions and tokens, so the same question is computed once.
    Raises UserError for an unknown `tokens` or no captions.
    """
    if tokens not in TOKENS:
        raise UserError(f'tokens="{tokens}" is unknown; allowed are: {", ".join(TOKENS)}.')
    if not captions:
        raise UserError("captions is empty; at least one caption is needed, and about 100,000 for a good C.")
    digest = hashlib.sha256(f"{tokens} {tensors_hash(text_encoder.state_dict().values())}".encode())
    for caption in captions:
        digest.update(f"{caption}\n".encode())
    hash = digest.hexdigest()[:32]
    path = Path(cache_dir) / f"covariance-{hash}.safetensors" if cache_dir else None
    if path and path.is_file():
        with safe_open(path, framework="pt") as file:
            return Covariance(file.get_tensor("C"), int(file.metadata()["count"]), hash)

    device, limit = text_encoder.get_input_embeddings().weight.device, tokenizer.model_max_length
    C, count = 0.0, 0
    # The attention is causal, so padding never changes what comes before it: pad only as far as is needed. Captions of
    # like length share a batch.
    captions = sorted(captions, key=len)
    for start in tqdm(range(0, len(captions), batch_size), desc="covariance", unit="batch", disable=not progress):
        batch = tokenizer(
            captions[start : start + batch_size],
            padding="max_length" if tokens == "all" else "longest",
            max_length=limit,
            truncation=True,
            return_tensors="pt",
        ).to(device)
        e = text_encoder(batch.input_ids)[0]
        e = e[token_mask(batch.input_ids, batch.attention_mask, tokens)].double()
        C, count = C + e.T @ e, count + len(e)
    C = (C / count).cpu()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        save_file({"C": C.contiguous()}, part, {"count": str(count), "tokens": tokens})
        os.replace(part, path)
    return Covariance(C, count, hash)
