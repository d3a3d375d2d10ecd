"""Tiny random PixArt and Sana pipelines (random_denoisers) whose pictures depend on the text."""

import functools

import random_denoisers
import torch
from helpers import louder, quiet


def _finished(pipe, loud: float):
    """Evaluating, quiet, and with a text that counts: a fresh initialization all but ignores it."""
    pipe.transformer.eval(), pipe.text_encoder.eval(), pipe.vae.eval()
    with torch.no_grad():
        for p in pipe.transformer.proj_out.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    louder(pipe.transformer, pipe.text_encoder, by=4)
    with torch.no_grad():  # `louder` multiplies embeddings by CLIP's 20
        pipe.text_encoder.get_input_embeddings().weight.mul_(loud / 20)
    return quiet(pipe)


def _louder(name: str):
    return _finished(random_denoisers.TINY[name](), 20 if name == "sana" else 1)


TINY = {name: functools.partial(_louder, name) for name in random_denoisers.TINY}
pixart, sana = TINY["pixart"], TINY["sana"]


def draw(pipe, prompt="a teddy* on a beach", **kwargs):
    """The pictures [N, 32, 32, 3], from one seed an image; captions are not cleaned, for which a package is needed."""
    count = 1 if isinstance(prompt, str) else len(prompt)
    generators = [torch.Generator().manual_seed(7) for _ in range(count)]
    options = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "np", "clean_caption": False}
    return pipe(prompt, generator=generators, use_resolution_binning=False, **(options | kwargs)).images
