"""What the sections of measure_gpu.py share: the device, its clock and memory, pipelines of random weights on it."""

import gc
import statistics
import time
from argparse import Namespace

import torch
from random_sd15 import random_pipeline
from random_sdxl import random_sdxl

from perfusion.method.concept import Concept
from perfusion.method.edit import target_key
from perfusion.method.layers import cross_attentions
from perfusion.method.text_encoders import text_encoder_of

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
OPTIONS = Namespace(tiny=False)  # of the command line that is running
PROMPT = "a photo of a c0* on a beach"


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def clear() -> None:
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mib() -> int | None:
    return torch.cuda.max_memory_allocated() // 2**20 if GPU else None


def median_ms(call, rounds: int = 10, warm_up: int = 3) -> float:
    times = []
    for turn in range(warm_up + rounds):
        wait()
        started = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - started)
    return round(1000 * statistics.median(times[warm_up:]), 3)


BASES = {}  # the last one, as a section follows others of its kind


def base(kind: str, dtype: torch.dtype):
    """The pipeline with random weights, made on the device itself; what a section puts on it, it takes off."""
    if kind not in BASES:
        BASES.clear()
        clear()
        with torch.device(DEVICE):
            pipe = {"sd15": random_pipeline, "sdxl": random_sdxl}[kind](OPTIONS.tiny)
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)  # its tables belong on the CPU
        pipe.set_progress_bar_config(disable=True)
        pipe._perfusion_base_hash = "random"
        BASES[kind] = pipe
    pipe = BASES[kind].to(dtype)
    clear()
    return pipe


def side(kind: str) -> int:
    return 64 if OPTIONS.tiny else {"sd15": 512, "sdxl": 1024}[kind]


def random_concepts(pipe, count: int) -> dict[str, Concept]:
    g, encoder = torch.Generator().manual_seed(0), text_encoder_of(pipe)
    random = lambda n: torch.randn(n, generator=g)
    d, layers = encoder.config.hidden_size, cross_attentions(pipe.unet)
    towers = getattr(encoder, "towers", [encoder])
    wide = sum(tower.get_input_embeddings().weight.shape[1] for tower in towers)

    def one(i: int) -> Concept:
        i_star = random(d)
        o_star_v = {name: 0.1 * random(a.to_v.out_features) for name, a in layers.items()}
        key = target_key(torch.eye(d), i_star)
        return Concept(
            f"c{i}*", "teddy", i_star, key, 0.01 * random(wide), o_star_v, base_hash=pipe._perfusion_base_hash
        )

    return {f"c{i}*": one(i) for i in range(count)}


@torch.no_grad()
def one_step(pipe, kind: str, prompt: str):
    """A function that calls the unet once as a drawing step with guidance does: batch 2, the prompt's encodings given."""
    device = pipe.unet.device
    e, negative, *pooled = pipe.encode_prompt(
        prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    x = torch.randn(2, 4, side(kind) // 8, side(kind) // 8, generator=torch.Generator().manual_seed(0)).to(
        device, e.dtype
    )
    both, more = torch.cat([negative, e]), None
    if kind == "sdxl":
        sizes = torch.tensor([[side(kind), side(kind), 0, 0, side(kind), side(kind)]] * 2, device=device, dtype=e.dtype)
        more = {"text_embeds": torch.cat([pooled[1], pooled[0]]), "time_ids": sizes}
    t = torch.tensor(500, device=device)

    @torch.no_grad()
    def call():
        return pipe.unet(x, t, both, added_cond_kwargs=more).sample

    return call
