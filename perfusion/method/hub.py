"""Concepts on the Hugging Face hub: user/repo or hf://user/repo[@revision][/file] for any concept file, and `perfusion push`."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from perfusion.errors import DISTRIBUTION, UserError

FILE = "concept.safetensors"  # its name in a repository where none is given
URL = re.compile(r"hf:/{1,2}([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?")
REPO = re.compile(r"[\w.-]+/[\w.-]+")
PICTURE = "picture.png"  # likewise; what the card shows
OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "weight_name")  # as diffusers' loaders call them


def failures() -> tuple[type[Exception], ...]:
    """What an error of huggingface_hub is one of, and what its client raises of the network, which HfHubHTTPError is, too."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, ValueError, *HfHubHTTPError.__bases__


def fetch(path: str | os.PathLike, *, largest: int | None = None, **options) -> Path:
    """A local path: of what lies there, or of what hf://user/repo[@revision][/file], or user/repo, is fetched (and cached) as.

    options: of the hub, and of no meaning to what lies here: revision, token, cache_dir, local_files_only, weight_name (the
    file in the repository). largest: bytes above which a file of the hub is not downloaded, where the hub tells them. Raises
    UserError, naming the address, where it cannot be had, or for another option.
    """
    if unknown := sorted(options.keys() - set(OPTIONS)):
        raise UserError(f"{unknown} cannot be given for a concept file; allowed are: {', '.join(OPTIONS)}.")
    if not str(path).startswith("hf:"):
        address = str(path)
        named = Path(path).suffix in (".safetensors", ".ckpt", ".pt", ".bin")  # a file, that may be missing
        if named or Path(path).exists() or not REPO.fullmatch(address) or address.startswith("."):
            return Path(path)
        path = f"hf://{address}"
    match = URL.fullmatch(str(path))
    if not match:
        raise UserError(
            f"{path} is not an address on the hub; allowed is hf://user/repo, hf://user/repo@revision/file."
        )
    from huggingface_hub import hf_hub_download

    repo, revision, file = match.groups()
    file = file or options.pop("weight_name", None) or FILE
    options = {k: v for k, v in options.items() if k != "weight_name"} | ({"revision": revision} if revision else {})
    try:
        size = largest and hf_hub_download(repo, file, dry_run=True, **options).file_size
        if not size or size <= largest:
            return Path(hf_hub_download(repo, file, **options))
    except failures() as error:
        raise UserError(
            f"{path} cannot be fetched ({' '.join(str(error).split())}); check the address, name the file "
            f"if it is not {FILE}, log in for a private one (hf auth login), or give a local file."
        ) from error
    raise UserError(f"{path} has {size} bytes; a concept file has at most {largest}.")


PROMPTS = ("a photo of a {}", "a {} on a beach", "a {} wearing a hat")  # of the card


def card(concept, repo: str, picture: bool = False) -> str:
    """The model card in Markdown, its metadata as YAML on top, for a concept that will live in `repo`, beside a picture or not."""
    from huggingface_hub import ModelCardData

    base = concept.config.get("base_model") or concept.base_id
    prompts = [p.format(concept.trigger) for p in PROMPTS]
    widget: list[dict] = [{"text": p} for p in prompts]
    if picture:
        widget[0]["output"] = {"url": PICTURE}

    shown = f"\n![{concept.trigger}: what it was learned from, and how it is drawn]({PICTURE})\n" if picture else ""
    data = ModelCardData(
        license="other",
        license_name=concept.licence or "unknown",
        base_model=base if REPO.fullmatch(base) else None,
        library_name="perfusion",
        pipeline_tag="text-to-image",
        tags=["perfusion", "personalization", "diffusers"],
        instance_prompt=concept.trigger,
        widget=widget,
    )
    layers, trainable = len(concept.o_star_v), sum(o.numel() for o in concept.o_star_v.values())
    return f"""---
{data.to_yaml()}
---

# {concept.trigger}

A concept for text-to-image models: a {concept.super_category}, learned by
[Perfusion](https://arxiv.org/abs/2305.01644) (key-locked rank-one editing). Write `{concept.trigger}` in a prompt
to draw it.
{shown}
## Use

With the package `{DISTRIBUTION}` installed, on a stock diffusers pipeline of the base model:

```python
from perfusion import load_concepts

handle = load_concepts(pipe, {{"{concept.trigger}": "{repo}"}})
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


def package(concept, folder: str | os.PathLike, repo: str, picture: str | os.PathLike | None = None) -> None:
    """Write to `folder` what the repository will hold: the concept file, the model card, and a picture of it."""
    from huggingface_hub import ModelCard

    concept.save(Path(folder) / FILE)
    if picture:
        shutil.copyfile(picture, Path(folder) / PICTURE)
    ModelCard(card(concept, repo, bool(picture))).save(Path(folder) / "README.md")


def push(concept, repo: str, private: bool = False, picture: str | os.PathLike | None = None) -> str:
    """Upload a concept to `repo` ("user/name"), made if it is not there; returns its address, for load_concepts.

    picture: a PNG that the card shows, such as a training's picture.png. Raises UserError where it is none, or where the hub
    refuses.
    """
    from huggingface_hub import HfApi

    if picture and not (Path(picture).is_file() and Path(picture).read_bytes()[:4] == b"\x89PNG"):
        raise UserError(f"picture={picture} is not a PNG file; give one, such as a training's {PICTURE}, or none.")

    with tempfile.TemporaryDirectory() as folder:
        package(concept, folder, repo, picture)
        try:
            api = HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Concept {concept.trigger}")
        except failures() as error:
            raise UserError(
                f"{repo} cannot be written ({' '.join(str(error).split())}); give user/name, and log in with a token "
                "that may write (hf auth login)."
            ) from error
    return f"hf://{repo}"
