"""Time a training step of UNet shapes that Emojiland could have, in turn in one run.

python scripts/measure_unet_cost.py     # writes results/unet_cost.json; docs/emojiland.md tells what was taken
"""

import json
import statistics
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

BATCH, ROUNDS = 32, 5
# name: channels, heads, fused attention kernel
SHAPES = {
    "96-160-224, 4 heads, fused attention": ([96, 160, 224], [4, 4, 4], True),
    "96-160-224, 4 heads": ([96, 160, 224], [4, 4, 4], False),
    "96-160-224, 2-4-4 heads": ([96, 160, 224], [2, 4, 4], False),
    "64-160-256, 2-4-4 heads": ([64, 160, 256], [2, 4, 4], False),
}


def build(channels: list[int], heads: list[int], fused: bool) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=8, out_channels=8, cross_attention_dim=128, norm_num_groups=16, layers_per_block=1,
        block_out_channels=channels, attention_head_dim=heads, mid_block_type="UNetMidBlock2D",
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    )  # fmt: skip
    if not fused:
        unet.set_attn_processor(AttnProcessor())
    return unet


def step(unet: UNet2DConditionModel, optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one step of BATCH pictures' latents."""
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        drawn = unet(torch.randn(BATCH, 8, 16, 16), torch.randint(1000, (BATCH,)), torch.randn(BATCH, 32, 128)).sample
    drawn.float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started


def main() -> None:
    torch.manual_seed(0)
    unets = {name: build(*shape) for name, shape in SHAPES.items()}
    optimizers = {name: torch.optim.AdamW(unet.parameters()) for name, unet in unets.items()}
    seconds: dict[str, list[float]] = {name: [] for name in SHAPES}
    for turn in range(ROUNDS + 1):  # the first turn warms up
        for name, unet in unets.items():
            took = step(unet, optimizers[name])
            if turn:
                seconds[name].append(took)
    result = {
        "what": f"training step, bfloat16 autocast, batch {BATCH}, 16 x 16 x 8 latents; medians of {ROUNDS} turns",
        "threads": torch.get_num_threads(),
        "shapes": {
            name: {
                "parameters": sum(p.numel() for p in unets[name].parameters()),
                "ms_per_image": round(1000 * statistics.median(s) / BATCH, 1),
            }
            for name, s in seconds.items()
        },
    }
    path = Path("results/unet_cost.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
