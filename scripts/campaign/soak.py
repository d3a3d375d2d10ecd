"""Concepts loaded, drawn with and unloaded again and again: python scripts/campaign/soak.py --loads 10000

One tiny pipeline; in every round one or two of twenty concept files are loaded, four threads draw at once, and the concepts are
unloaded. Every drawn picture must be what its concepts drew the first time, the base model's picture at the end what it was
at the start, to the last bit, and the memory, after the first tenth, flat within 2 %.
"""

import gc
import resource
import threading
import time
from pathlib import Path

from common import arguments, keep, preload, rng, workplace

THREADS = 4
PROMPTS = ["a teddy* on a beach", "a teapot* in the snow", "a cat at night", "a teddy* next to a teapot*"]


def main() -> None:
    asked, started = arguments(__doc__, loads=10_000), time.perf_counter()
    preload()
    import numpy as np

    from perfusion.method.pipeline import load_concepts

    random = rng(asked.seed)
    with workplace() as folder:
        pipe, files = tiny(folder)
        base, known, wrong, memory = [picture(pipe, p) for p in PROMPTS], {}, 0, []
        for i in range(asked.loads):
            chosen = {"teddy*": random.choice(files["teddy*"])}
            if random.random() < 0.5:
                chosen["teapot*"] = random.choice(files["teapot*"])
            handle = load_concepts(pipe, chosen)
            drawn = together(pipe, [random.randrange(len(PROMPTS)) for _ in range(THREADS)])
            handle.unload()
            for which, found in drawn:
                expected = known.setdefault((which, *sorted(map(str, chosen.values()))), found)
                wrong += not np.array_equal(found, expected)
            if i % max(1, asked.loads // 50) == 0:
                gc.collect()
                memory.append(resident())
                print(f"{i}: {memory[-1] >> 20} MiB, {wrong} wrong", flush=True)
        gc.collect()
        memory.append(resident())
        equal = all(np.array_equal(picture(pipe, p), b) for p, b in zip(PROMPTS, base))
    settled = memory[len(memory) // 10]
    keep(
        asked.results,
        "soak",
        {
            "soak_loads": asked.loads,
            "soak_threads": THREADS,
            "soak_wrong_pictures": wrong,
            "soak_memory_growth": round(memory[-1] / settled - 1, 4),
            "soak_base_equal": equal,
        },
        started,
    )


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
    encoder, denoiser = text_encoder(tokenizer, 32), unet(32)
    louder(denoiser, encoder)
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = quiet(StableDiffusionPipeline(vae(), encoder, tokenizer, denoiser, scheduler, **parts))
    hash, files = base_hash(encoder, denoiser), {"teddy*": [], "teapot*": []}
    for trigger, found in files.items():
        word = trigger[:-1]
        for i in range(10):
            noisy = lambda x: x + 0.5 * x.std() * torch.randn(x.shape)
            i_star = noisy(super_encoding(tokenizer, encoder, word))
            o_star = {n: noisy(a.to_v.weight.detach() @ i_star) for n, a in cross_attentions(denoiser).items()}
            concept = Concept(
                trigger, word, i_star, i_star, noisy(word_embedding(tokenizer, encoder, word)), o_star, base_hash=hash
            )
            found.append(folder / f"{word}-{i}.safetensors")
            concept.save(found[-1])
    return pipe, files


def picture(pipe, prompt: str):
    import torch

    generator = torch.Generator().manual_seed(7)
    return pipe(
        prompt, generator=generator, num_inference_steps=2, height=16, width=16, output_type="latent"
    ).images.numpy()


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


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
