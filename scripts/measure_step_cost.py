"""Time a denoising step with concepts against the stock pipeline's, in turn, on a random UNet of SD 1.5's shape.

python scripts/measure_step_cost.py [rounds]     # writes results/step_cost.json
"""

import statistics
import sys
import time

import torch
from diffusers import UNet2DConditionModel

from perfusion.atomic import write_json
from perfusion.method.edit import augment
from perfusion.method.layers import cross_attentions, widen

SIZE, TOKENS, D = 32, 77, 768  # latents of 256 x 256 pictures; CLIP ViT-L/14's tokens and width


@torch.no_grad()
def main(rounds: int = 7) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(cross_attention_dim=D, attention_head_dim=8, sample_size=64).eval()  # SD 1.5's defaults
    x, e = torch.randn(2, 4, SIZE, SIZE), torch.randn(2, TOKENS, D)
    widths = {n: a.to_v.out_features for n, a in cross_attentions(unet).items()}
    seconds: dict[int, list[float]] = {0: [], 1: [], 16: []}
    for turn in range(rounds + 1):  # the first turn warms up
        for concepts, measured in seconds.items():
            encodings, widened = e, None
            if concepts:
                i_star, key = torch.randn(concepts, D), torch.randn(concepts, D)
                o_star = {n: torch.randn(concepts, w) for n, w in widths.items()}
                widened = widen(unet, i_star, o_star, o_star)
                encodings = augment(e, i_star, key, torch.tensor(0.75), torch.tensor(0.1))
                encodings = torch.cat([encodings, encodings], -1)
            unet(x, 999, encodings)  # the first step of a prompt computes K and V; the others are what is timed
            start = time.perf_counter()
            unet(x, 500, encodings)
            if turn:
                measured.append(time.perf_counter() - start)
            if widened:
                widened.restore()
    ratio = lambda j: round(statistics.median(a / b for a, b in zip(seconds[j], seconds[0])), 4)
    result = {
        "what": f"one UNet call, batch 2, {SIZE} x {SIZE} latents, SD 1.5's shape, float32; medians of {rounds} turns",
        "seconds_stock": round(statistics.median(seconds[0]), 4),
        "ratio_1": ratio(1),
        "ratio_16": ratio(16),
        "trainable": D + sum(widths.values()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(write_json("results/step_cost.json", result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
