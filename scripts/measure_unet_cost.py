"""Time a training step of UNet shapes that Emojiland could have, in turn in one run.

python scripts/measure_unet_cost.py     # writes results/unet_cost.json; docs/emojiland.md tells what was taken
"""

import statistics
import time

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from omegaconf import OmegaConf
from pretrain_unet import build

from perfusion.atomic import write_json
from perfusion.config import CONF, native_bfloat16

BATCH, ROUNDS = 32, 5
# name: channels, heads, fused attention kernel; all else as conf/pretrain/unet.yaml has it
SHAPES = {
    "96-160-224, 4 heads, fused attention": ([96, 160, 224], [4, 4, 4], True),
    "96-160-224, 4 heads": ([96, 160, 224], [4, 4, 4], False),
    "96-160-224, 2-4-4 heads": ([96, 160, 224], [2, 4, 4], False),
    "64-160-256, 2-4-4 heads": ([64, 160, 256], [2, 4, 4], False),
}


def step(unet: UNet2DConditionModel, optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one step of BATCH pictures' latents."""
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=native_bfloat16()):
        drawn = unet(torch.randn(BATCH, 8, 16, 16), torch.randint(1000, (BATCH,)), torch.randn(BATCH, 32, 128)).sample
    drawn.float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started


def main() -> None:
    torch.manual_seed(0)
    cfg, unets = OmegaConf.load(CONF / "pretrain/unet.yaml"), {}
    for name, (channels, heads, fused) in SHAPES.items():
        unets[name] = build(OmegaConf.merge(cfg, {"channels": channels, "heads": heads}), 8, 16, 128)
        if fused:
            unets[name].set_attn_processor(AttnProcessor2_0())
    optimizers = {name: torch.optim.AdamW(unet.parameters()) for name, unet in unets.items()}
    seconds: dict[str, list[float]] = {name: [] for name in SHAPES}
    for turn in range(ROUNDS + 1):  # the first turn warms up
        for name, unet in unets.items():
            took = step(unet, optimizers[name])
            if turn:
                seconds[name].append(took)
    result = {
        "what": f"training step, {'bfloat16 autocast' if native_bfloat16() else 'float32'}, batch {BATCH}, 16 x 16 x 8 "
        f"latents; medians of {ROUNDS} turns",
        "threads": torch.get_num_threads(),
        "shapes": {
            name: {
                "parameters": sum(p.numel() for p in unets[name].parameters()),
                "ms_per_image": round(1000 * statistics.median(s) / BATCH, 1),
            }
            for name, s in seconds.items()
        },
    }
    print(write_json("results/unet_cost.json", result))


if __name__ == "__main__":
    main()
