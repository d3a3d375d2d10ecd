"""Concepts on the Hugging Face hub: hf://user/repo[@revision][/file] for any concept file, and `perfusion push`."""

import os
import re
import tempfile
from pathlib import Path

from perfusion.errors import DISTRIBUTION, UserError

FILE = "concept.safetensors"  # its name in a repository where none is given
URL = re.compile(r"hf:/{1,2}([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?")
FAILURES = (OSError, ValueError)  # what every error of huggingface_hub is one of


def fetch(path: str | os.PathLike) -> Path:
    """A local path: of what lies there, or of what hf://user/repo[@revision][/file] is fetched (and cached) as.

    Raises UserError, naming the address, where it cannot be had.
    """
    if not str(path).startswith("hf:"):
        return Path(path)
    match = URL.fullmatch(str(path))
    if not match:
        raise UserError(
            f"{path} is not an address on the hub; allowed is hf://user/repo, hf://user/repo@revision/file."
        )
    from huggingface_hub import hf_hub_download

    repo, revision, file = match.groups()
    try:
        return Path(hf_hub_download(repo, file or FILE, revision=revision))
    except FAILURES as error:
        raise UserError(
            f"{path} cannot be fetched ({' '.join(str(error).split())}); check the address, name the file "
            f"if it is not {FILE}, log in for a private one (hf auth login), or give a local file."
        ) from error


def card(concept, repo: str) -> str:
    """The model card in Markdown, its metadata as YAML on top, for a concept that will live in `repo`."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license="other",
        license_name=concept.licence or "unknown",
        base_model=concept.base_id if "/" in concept.base_id else None,
        library_name="perfusion",
        pipeline_tag="text-to-image",
        tags=["perfusion", "personalization", "diffusers"],
    )
    layers, trainable = len(concept.o_star_v), sum(o.numel() for o in concept.o_star_v.values())
    return f"""---
{data.to_yaml()}
---

# {concept.trigger}

A concept for text-to-image models: a {concept.super_category}, learned by
[Perfusion](https://arxiv.org/abs/2305.01644) (key-locked rank-one editing). Write `{concept.trigger}` in a prompt
to draw it.

## Use

With the package `{DISTRIBUTION}` installed, on a stock diffusers pipeline of the base model:

```python
from perfusion import load_concepts

handle = load_concepts(pipe, {{"{concept.trigger}": "hf://{repo}"}})
pipe("a photo of a {concept.trigger}")
with handle.gate(beta={concept.beta - 0.15:.2f}):  # a lower bias: more likeness; a higher one: more of the prompt
    pipe("a photo of a {concept.trigger}")
```

## What it is

| | |
|---|---|
| super-category | {concept.super_category} |
| base model | {concept.base_id or "unknown"}, hash `{concept.base_hash}`; it is refused on any other |
| key lock in training | {concept.lock} |
| gate in training | beta {concept.beta}, tau {concept.tau} |
| steps kept | {concept.steps} |
| numbers learned | {trainable} in {layers} cross-attention layers, {concept.embedding.numel()} in the word embedding |
| covariance | `{concept.covariance_hash or "unknown"}` |
| licence | {concept.licence or "unknown"} |
"""


def package(concept, folder: str | os.PathLike, repo: str) -> None:
    """Write to `folder` what the repository will hold: the concept file and the model card."""
    from huggingface_hub import ModelCard

    concept.save(Path(folder) / FILE)
    ModelCard(card(concept, repo)).save(Path(folder) / "README.md")


def push(concept, repo: str, private: bool = False) -> str:
    """Upload a concept to `repo` ("user/name"), made if it is not there; returns its address, for load_concepts.

    Raises UserError where the hub refuses.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        package(concept, folder, repo)
        try:
            api = HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Concept {concept.trigger}")
        except FAILURES as error:
            raise UserError(
                f"{repo} cannot be written ({' '.join(str(error).split())}); give user/name, and log in with a token "
                "that may write (hf auth login)."
            ) from error
    return f"hf://{repo}"
