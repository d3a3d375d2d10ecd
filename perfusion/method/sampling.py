"""Draw prompts through the pipeline: one generator an image, so that a picture does not depend on its batch."""

import torch
from PIL import Image


def draw(
    pipe,
    prompts: list[str],
    seeds: list[int],
    steps: int,
    guidance: float,
    negative_prompt: str | None = None,
    batch_size: int = 16,
    resolution: int | None = None,
) -> list[Image.Image]:
    """One picture a prompt; the same prompt and seed give the same picture in any batch.

    resolution: pixels of a side; None for what the pipeline draws by itself.
    """
    pictures = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        pictures += pipe(
            prompts[part],
            negative_prompt=[negative_prompt or ""] * len(prompts[part]),
            generator=[torch.Generator().manual_seed(s) for s in seeds[part]],
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=resolution,
            width=resolution,
        ).images
    return pictures
