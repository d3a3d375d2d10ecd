"""Draw prompts through the pipeline: one generator an image, so that a picture does not depend on its batch."""

import inspect
from dataclasses import dataclass

import torch
from PIL import Image


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn: denoising steps, classifier-free guidance scale, pictures at once, pixels of a side.

    resolution: None for what the pipeline draws by itself. The scheduler is the pipeline's. bfloat16: whether a float32
    pipeline on a CPU multiplies in it (autocast).
    """

    steps: int
    guidance: float
    batch: int = 16
    resolution: int | None = None
    bfloat16: bool = False

    @classmethod
    def of(cls, model) -> "Sampling":
        """Of a model's configuration (conf/model)."""
        bfloat16 = model.draw_precision == "bf16-mixed"
        return cls(model.steps, model.guidance, model.draw_batch, model.resolution, bfloat16)


def draw(
    pipe, prompts: list[str], seeds: list[int], sampling: Sampling, negative_prompt: str | None = None
) -> list[Image.Image]:
    """One picture a prompt; the same prompt and seed give the same picture in any batch."""
    pictures = []
    # PixArt's and Sana's would draw at another size, and scale the picture.
    binned = "use_resolution_binning" in inspect.signature(type(pipe).__call__).parameters
    exact = {"use_resolution_binning": False} if binned else {}
    for start in range(0, len(prompts), sampling.batch):
        part = slice(start, start + sampling.batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=sampling.bfloat16 and pipe.device.type == "cpu"):
            pictures += pipe(
                prompts[part],
                negative_prompt=[negative_prompt or ""] * len(prompts[part]),
                generator=[torch.Generator().manual_seed(s) for s in seeds[part]],
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance,
                height=sampling.resolution,
                width=sampling.resolution,
                **exact,
            ).images
    return pictures
