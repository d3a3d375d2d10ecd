"""The configured base model: a stock diffusers pipeline, and its inverse covariance."""

import importlib
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from omegaconf import DictConfig

from perfusion.captions import Captions
from perfusion.covariance import TOKENS, Covariance, second_moment
from perfusion.emojiland.cache import home
from perfusion.errors import UserError


def check_model(model: DictConfig) -> None:
    """Raises UserError where a local model is not there; nothing is loaded."""
    for key, file in (("path", "model_index.json"), ("segmenter", "config.json"), ("scorer", "open_clip_config.json")):
        folder = Path(model[key].removeprefix("local-dir:"))
        if folder.is_absolute() and not (folder / file).exists():
            raise UserError(
                f"model.{key}={model[key]} has no {file}; give a folder that has, or a hub id, "
                "or make Emojiland's models with `make emojiland`."
            )


def load_pipeline(model: DictConfig):
    """The stock pipeline of `model`, quiet. Raises UserError where it is not there."""
    check_model(model)
    pipe = DiffusionPipeline.from_pretrained(model.path, dtype=getattr(torch, model.dtype))
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(_name_or_path=model.id)
    return pipe


def check_covariance(
    captions: int | None, tokens: str | None, source: str | None = None, file: str | None = None
) -> None:
    """Raises UserError where the configured C cannot be had; nothing is measured."""
    if file:
        Covariance.load(file)
    elif source:
        Captions(source)
    if not file and tokens not in TOKENS:
        raise UserError(f'covariance.tokens="{tokens}" is unknown; allowed are: {", ".join(TOKENS)}.')


def covariance(
    pipe,
    model: DictConfig,
    captions: int | None,
    tokens: str | None,
    source: str | None = None,
    file: str | None = None,
) -> Covariance:
    """C out of `file`, or over `captions` captions of `source` or of the model's own, measured once and cached."""
    if file:
        found = Covariance.load(file)
        found.check_encoder(pipe.text_encoder, file)
        return found
    texts = Captions(source, captions) if source else importlib.import_module(model.captions).captions(captions)
    return second_moment(texts, pipe.tokenizer, pipe.text_encoder, tokens, cache_dir=home() / "covariance")
