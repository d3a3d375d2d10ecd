"""The configured base model: a stock diffusers pipeline, and its inverse covariance."""

import importlib
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from omegaconf import DictConfig

from perfusion.covariance import Covariance, second_moment
from perfusion.emojiland.cache import home
from perfusion.errors import UserError


def load_pipeline(model: DictConfig):
    """The stock pipeline of `model`, quiet and without a safety checker. Raises UserError where it is not there."""
    if model.path.startswith("/") and not (Path(model.path) / "model_index.json").exists():
        raise UserError(f"model.path={model.path} is not a diffusers pipeline (no model_index.json); "
                        "give a pipeline folder or a hub id, or make Emojiland's with `make emojiland`.")
    pipe = DiffusionPipeline.from_pretrained(model.path, dtype=getattr(torch, model.dtype))
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(_name_or_path=model.id)
    return pipe


def covariance(pipe, model: DictConfig, captions: int, tokens: str) -> Covariance:
    """C over the model's captions, computed once per (text encoder, captions, tokens) and cached."""
    texts = importlib.import_module(model.captions).captions(captions)
    return second_moment(texts, pipe.tokenizer, pipe.text_encoder, tokens, cache_dir=home() / "covariance")
