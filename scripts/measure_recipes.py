"""Ways to train Emojiland's UNet, compared at equal minutes on one fixed set: which to take for the long run.

python scripts/measure_recipes.py [minutes=4] [names=warm_adamw,warm_muon] [start=FOLDER]     # writes results/recipes.json

Every recipe gets the same minutes of processor time (so that what else the machine does costs none of them), its own warm-up
and cooldown within them, and is then asked for the error of its predictions on 256 scenes that no training sees, at 32 fixed
timesteps. `start` is the UNet that the warm ones go on from.
"""

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from omegaconf import OmegaConf
from pretrain_unet import UNetPretraining, latents_of
from transformers import CLIPTextModel, CLIPTokenizer

from perfusion.atomic import write_json
from perfusion.config import ASSETS, CONF, native_bfloat16
from perfusion.emojiland.cache import SceneCache
from perfusion.emojiland.muon import optimizer_of

RECIPES = {  # name: what differs from conf/pretrain/unet.yaml
    "warm_adamw": {"batch": 32, "lr": 1e-3},
    "warm_adamw_64": {"batch": 64, "lr": 1e-3},
    "warm_muon_64": {"batch": 64, "lr": 1e-3, "optimizer": "muon"},
    "warm_muon_64_hot": {"batch": 64, "lr": 3e-3, "optimizer": "muon"},
    "cold_adamw_64": {"batch": 64, "lr": 1e-3, "start": None},
    "cold_muon_64": {"batch": 64, "lr": 2e-3, "optimizer": "muon", "start": None},
    "cold_narrow_muon_64": {"batch": 64, "lr": 2e-3, "optimizer": "muon", "start": None, "channels": [64, 160, 256]},
}
TEST_SCENES, TIMESTEPS, SEED = 256, 32, 77_003


@torch.no_grad()
def test_error(module: UNetPretraining, test: dict) -> float:
    """Mean squared error of the velocity over the test set, every scene at its own one of TIMESTEPS even timesteps."""
    x, e = test["latents"], test["encodings"]
    ladder = torch.linspace(15, 984, TIMESTEPS).long().repeat(len(x) // TIMESTEPS)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED))
    noisy, target = module.scheduler.add_noise(x, noise, ladder), module.scheduler.get_velocity(x, noise, ladder)
    parts = zip(noisy.split(64), ladder.split(64), e.split(64), target.split(64))
    errors = [(module.model(n, t, c).sample - v).square().mean((1, 2, 3)) for n, t, c, v in parts]
    return torch.cat(errors).mean().item()


def trial(cfg, parts: tuple, test: dict, minutes: float) -> dict:
    """Train one recipe for so many minutes of processor time on all threads; its error and what it took."""
    torch.manual_seed(0)
    module = UNetPretraining(cfg, *parts)
    optimizer = optimizer_of(module, cfg.optimizer, cfg.lr, cfg.weight_decay)
    before, budget = test_error(module, test), minutes * 60 * torch.get_num_threads()
    started, clock, step, done = time.process_time(), time.perf_counter(), 0, 0.0
    while done < 1:
        rate = min(1.0, done / 0.05 + 0.02) * 0.5 * (1 - math.cos(math.pi * min(1.0, (1 - done) / 0.5)))
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * rate
        torch.manual_seed(step)
        rows = np.sort(module.pool[np.random.default_rng([0, step]).integers(0, len(module.pool), cfg.batch)])
        with torch.autocast("cpu", torch.bfloat16, enabled=native_bfloat16()):
            loss = module.loss(rows)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, done = step + 1, (time.process_time() - started) / budget
    return {
        "steps": step,
        "images": step * cfg.batch,
        "error_before": round(before, 4),
        "error": round(test_error(module, test), 4),
        "wall_seconds": round(time.perf_counter() - clock),
    }


def main() -> None:
    given = OmegaConf.from_cli(sys.argv[1:])
    minutes, names = float(given.get("minutes", 4)), str(given.get("names", ",".join(RECIPES))).split(",")
    folder, results = ASSETS / "emojiland/pipeline", given.get("results", "results/recipes.json")
    base = OmegaConf.merge(
        OmegaConf.load(CONF / "pretrain/common.yaml"), OmegaConf.load(CONF / "pretrain/unet.yaml"),
        {"start": given.get("start", str(folder / "unet"))},
    )  # fmt: skip
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    scenes = SceneCache(base.scenes, 1, held_out=False, mutants=base.mutants, strangers=base.strangers)
    unseen = SceneCache(TEST_SCENES, SEED, held_out=False)
    with torch.no_grad():
        encodings = text_encoder(tokenizer(unseen.captions, **padded).input_ids).last_hidden_state
    test = {"latents": torch.from_numpy(np.array(latents_of(unseen, vae))).float(), "encodings": encodings}
    parts, done = (scenes, latents_of(scenes, vae), tokenizer, text_encoder), {}
    for name in names:
        done[name] = trial(OmegaConf.merge(base, RECIPES[name]), parts, test, minutes) | RECIPES[name]
        print(name, done[name], flush=True)
        what = f"error of the velocity on {TEST_SCENES} unseen scenes after {minutes} minutes of {torch.get_num_threads()} threads"
        Path(results).parent.mkdir(parents=True, exist_ok=True)
        write_json(results, {"what": what, "minutes": minutes, "start": Path(str(base.start)).name, "recipes": done})


if __name__ == "__main__":
    main()
