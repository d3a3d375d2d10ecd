"""Concepts loaded, drawn with and unloaded again and again: python scripts/campaign/soak.py --loads 10000

One tiny pipeline; in every round one or two of twenty concept files are loaded, four threads draw at once, and the concepts
are unloaded. Every drawn picture must be what its concepts drew the first time, the base model's picture at the end what it
was at the start, to the last bit, and the memory, after the first tenth, flat within 2 %.
--pipelines of them share the loads side by side; the memory is the worst one's.
"""

import gc
import json
import random
import threading
import time
from functools import partial
from pathlib import Path

from common import arguments, keep, workplace
from processes import Child, preload

THREADS = 4
PROMPTS = ["a teddy* on a beach", "a teapot* in the snow", "a cat at night", "a teddy* next to a teapot*"]


def main() -> None:
    asked, started = arguments(__doc__, loads=10_000, pipelines=1), time.perf_counter()
    preload()
    with workplace() as folder:
        pipe, files = tiny(folder)
        share = [(asked.loads + i) // asked.pipelines for i in range(asked.pipelines)]
        work = [
            partial(soaked, pipe, files, loads, f"{asked.seed} {i}", folder / f"{i}.json")
            for i, loads in enumerate(share)
        ]
        children = [Child(one, folder, folder / f"{i}.log") for i, one in enumerate(work)]
        for i, child in enumerate(children):
            assert child.wait() == 0, (folder / f"{i}.log").read_text()[-3000:]
        reports = [json.loads((folder / f"{i}.json").read_text()) for i in range(asked.pipelines)]
    total = lambda name: sum(one[name] for one in reports)
    figures = {
        "soak_loads": total("loads"),
        "soak_pipelines": asked.pipelines,
        "soak_pictures": total("pictures"),
        "soak_threads": THREADS,
        "soak_wrong_pictures": total("wrong"),
        "soak_memory_mib": round(max(one["memory"][-1] for one in reports)),
        "soak_memory_growth": round(max(one["growth"] for one in reports), 4),
        "soak_base_equal": all(one["base_equal"] for one in reports),
    }
    keep(asked.results, "soak", figures, started)


def soaked(pipe, files: dict[str, list[Path]], loads: int, seed: str, to: Path) -> None:
    """So many rounds on one pipeline; what is found goes to a file."""
    import numpy as np

    from perfusion.method.pipeline import load_concepts

    random.seed(seed)
    base, known, pictures, wrong, memory = [picture(pipe, p) for p in PROMPTS], {}, 0, 0, []
    for i in range(loads):
        chosen = {"teddy*": random.choice(files["teddy*"])}
        if random.random() < 0.5:
            chosen["teapot*"] = random.choice(files["teapot*"])
        handle = load_concepts(pipe, chosen)
        drawn = together(pipe, random.choices(range(len(PROMPTS)), k=THREADS))
        handle.unload()
        pictures += len(drawn)
        for which, seen in drawn:
            expected = known.setdefault((which, *sorted(map(str, chosen.values()))), seen)
            wrong += not np.array_equal(seen, expected)
        if i % max(1, loads // 50) == 0 or i == loads - 1:
            gc.collect()
            memory.append(resident())
            print(f"{i}: {memory[-1]:.1f} MiB, {wrong} wrong", flush=True)
    equal = all(np.array_equal(picture(pipe, p), b) for p, b in zip(PROMPTS, base))
    growth = memory[-1] / memory[len(memory) // 10] - 1
    result = {
        "loads": loads,
        "pictures": pictures,
        "wrong": wrong,
        "memory": memory,
        "growth": growth,
        "base_equal": equal,
    }
    to.write_text(json.dumps(result))


def tiny(folder: Path):
    """A tiny Stable Diffusion pipeline, and ten concept files for each of two words."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from helpers import louder, quiet, text_encoder, tokenizers, unet, vae

    from perfusion.method.concept import Concept
    from perfusion.method.fingerprint import base_hash
    from perfusion.method.layers import cross_attentions
    from perfusion.method.text import super_encoding, word_embedding

    torch.manual_seed(0)
    tokenizer = tokenizers()[0]
    attending = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    encoder, denoiser = (
        text_encoder(tokenizer, 32),
        unet(32, block_out_channels=(16,), mid_block_type=None, **attending),
    )
    louder(denoiser, encoder)
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = quiet(StableDiffusionPipeline(vae(), encoder, tokenizer, denoiser, scheduler, **parts))
    hash, files = base_hash(encoder, denoiser), {"teddy*": [], "teapot*": []}
    for trigger, paths in files.items():
        word = trigger[:-1]
        for i in range(10):
            noisy = lambda x: x + 0.5 * x.std() * torch.randn(x.shape)
            i_star = noisy(super_encoding(tokenizer, encoder, word))
            o_star = {n: noisy(a.to_v.weight.detach() @ i_star) for n, a in cross_attentions(denoiser).items()}
            concept = Concept(
                trigger, word, i_star, i_star, noisy(word_embedding(tokenizer, encoder, word)), o_star, base_hash=hash
            )
            paths.append(folder / f"{word}-{i}.safetensors")
            concept.save(paths[-1])
    return pipe, files


def picture(pipe, prompt: str):
    """Latents after one step without guidance, from one seed: as little work as a call can be."""
    import torch

    asked = {"num_inference_steps": 1, "guidance_scale": 1, "height": 16, "width": 16, "output_type": "latent"}
    return pipe(prompt, generator=torch.Generator().manual_seed(7), **asked).images.numpy()


def together(pipe, which: list[int]) -> list:
    """Each thread draws one prompt, all at the same time: (prompt, picture)."""
    drawn, start = [], threading.Barrier(len(which))

    def work(i):
        start.wait()
        drawn.append((i, picture(pipe, PROMPTS[i])))

    threads = [threading.Thread(target=work, args=(i,)) for i in which]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == len(which), "a thread ended with an error"
    return drawn


def resident() -> float:
    """MiB of memory of this process's own; pages of libraries come and go as the system likes."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
