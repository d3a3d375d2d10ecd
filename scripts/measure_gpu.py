"""What a GPU makes of it: is it right in half precision, how long, how much memory; random weights at SD 1.5's and SDXL's shapes.

python scripts/measure_gpu.py                 # every section, about 5 minutes on one H100; writes results/gpu.json
python scripts/measure_gpu.py drawing_sd15 memory_sd15   # these sections alone, into the same file
python scripts/measure_gpu.py --tiny          # tiny shapes, on a CPU too, to try the script

Each section's result is written as soon as it is there, its error in its place where it failed (the exit code is then 1). No
section begins after --minutes. Times are medians after a warm-up, the device waited for; memory is the allocator's peak.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import hydra
import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from random_sd15 import random_pipeline
from random_sdxl import random_sdxl

from perfusion.atomic import write_json
from perfusion.config import ASSETS, CONF
from perfusion.learning.data import Latents
from perfusion.learning.methods import put_on
from perfusion.learning.module import PerfusionModule
from perfusion.learning.train import build, check, concept_of, fit, train
from perfusion.method.concept import Concept
from perfusion.method.edit import augment, target_key
from perfusion.method.layers import WidenedLinear, cross_attentions
from perfusion.method.pipeline import load_concepts
from perfusion.method.sampling import Sampling, draw
from perfusion.method.text_encoders import text_encoder_of
from perfusion.results import surroundings

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
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


# -- sections ----------------------------------------------------------------------------------------------------------
@torch.no_grad()
def edit_precision() -> dict:
    """One widened layer of SD 1.5's widest kind in half precision, against float32 on the same (rounded) numbers."""
    torch.manual_seed(0)
    d, out, differences = 768, 1280, {}
    for dtype in (torch.float16, torch.bfloat16):
        half = lambda *shape, d=dtype: torch.randn(*shape, device=DEVICE).to(d)
        e, i_star, key, o_star, W = half(4, 77, d), half(2, d), half(2, d), half(2, out), 0.04 * half(out, d)
        results, plain = {}, {}
        for name, kind in (("half", dtype), ("full", torch.float32)):
            base_layer = torch.nn.Linear(d, out, bias=False, device=DEVICE, dtype=kind)
            base_layer.weight.copy_(W)
            layer = WidenedLinear(base_layer, i_star.to(kind), o_star.to(kind), "v").to(DEVICE)
            x = augment(e.to(kind), i_star, key, torch.tensor([[0.75, 0.75]]), torch.tensor([[0.1, 0.1]]))
            results[name], plain[name] = layer.project(x).float(), base_layer(e.to(kind)).float()
        scale = results["full"].abs().max()
        differences[str(dtype).removeprefix("torch.")] = {
            "largest_difference": ((results["half"] - results["full"]).abs().max() / scale).item(),
            "of_the_plain_layer": ((plain["half"] - plain["full"]).abs().max() / plain["full"].abs().max()).item(),
        }
    return differences | {"unit": "share of the largest output"}


def unload(kind: str) -> dict:
    """In float16 and bfloat16: loading changes a step, unloading restores it to the last bit, two concepts differ from one."""
    checks = {}
    for dtype in (torch.float16, torch.bfloat16):
        pipe, both = base(kind, dtype), "a c0* next to a c1*"
        before, other = one_step(pipe, kind, both)(), one_step(pipe, kind, "a cat")()
        concepts = random_concepts(pipe, 2)
        handle = load_concepts(pipe, concepts)
        two = one_step(pipe, kind, both)()
        untouched = torch.equal(one_step(pipe, kind, "a cat")(), other)
        handle.unload()
        handle = load_concepts(pipe, {"c0*": concepts["c0*"]})
        one = one_step(pipe, kind, both)()
        handle.unload()
        checks[str(dtype).removeprefix("torch.")] = {
            "finite": bool(torch.isfinite(two).all()),
            "two_concepts_change_the_step": not torch.equal(two, before),
            "two_differ_from_one": not torch.equal(two, one),
            "a_prompt_without_them_is_the_base_model's": untouched,
            "unload_is_exact": torch.equal(one_step(pipe, kind, both)(), before),
        }
    return checks


def composed(*overrides: str):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", list(overrides))


def emojiland(*overrides: str):
    quiet = ("picture=false", "attention=false", "selection.every=null", "+trainer.enable_progress_bar=false")
    gpu = ("trainer.accelerator=gpu", "trainer.precision=32-true") if GPU else ("trainer.precision=32-true",)
    few = ("batch_size=4", "covariance.captions=2000") if OPTIONS.tiny else ("batch_size=8",)
    return composed(*quiet, *gpu, *few, *overrides)


def learning() -> dict:
    """Emojiland's teddy on the device: the loss falls in 25 steps, a resumed run is the uninterrupted one."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = emojiland("max_steps=25")
        concept = concept_of(cfg)
        check(cfg, concept)
        run = build(cfg, concept, Path(folder))
        losses = [validation_loss(run.module)]
        fit(run, cfg)
        losses.append(validation_loss(run.module))
        whole, half, rest = (Path(folder) / name for name in ("whole", "half", "rest"))
        for one in (whole, half, rest):
            one.mkdir()
        train(emojiland("max_steps=10"), whole)
        train(emojiland("max_steps=5"), half)
        train(emojiland("max_steps=10", f"resume={half / 'last.ckpt'}"), rest)
        a, b = (Concept.load(one / "concept.safetensors") for one in (whole, rest))
        gap = max((a.o_star_v[name] - b.o_star_v[name]).abs().max().item() for name in a.o_star_v)
    return {"loss_before": losses[0], "loss_after_25_steps": losses[1], "falls": losses[1] < losses[0],
            "resumed_differs_by": gap, "steps": [a.steps, b.steps]}  # fmt: skip


@torch.no_grad()
def validation_loss(module, draws: int = 16) -> float:
    """Mean loss over noises that no training step has; module.log does nothing outside a fit."""
    module.to(DEVICE)
    log, module.log = module.log, lambda *args, **kwargs: None
    losses = [module.training_step(None, 100_000 + i).item() for i in range(draws)]
    module.log = log
    return round(statistics.mean(losses), 5)


def emojiland_job() -> dict:
    """The whole main job on the device, then its concept drawn on the device and on the CPU."""
    steps = 4 if OPTIONS.tiny else 100
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = train(emojiland(f"max_steps={steps}"), Path(folder))
        seconds = time.perf_counter() - started
        concept, pictures = Concept.load(Path(folder) / "concept.safetensors"), {}
    from perfusion.learning.models import load_pipeline

    cfg = composed("model=emojiland").model
    for device in ("cpu", DEVICE):
        pipe = load_pipeline(cfg, device)
        handle = put_on(pipe, concept)
        sampling = Sampling(2 if OPTIONS.tiny else cfg.steps, cfg.guidance)
        prompts = [
            f"a photo of a {concept.trigger}",
            f"a {concept.trigger} on a beach",
            f"a {concept.trigger} at night",
        ]
        drawn = draw(pipe, prompts, [1, 2, 3], sampling)
        pictures[device] = np.stack([np.asarray(p, np.float32) for p in drawn])
        handle.unload()
    gap = np.abs(pictures["cpu"] - pictures[DEVICE])
    return {"steps": result["kept_step"], "seconds": round(seconds, 1), "cpu_and_gpu_differ_by": {
        "mean": round(float(gap.mean()), 4), "largest": float(gap.max()), "unit": "levels of 255"}}  # fmt: skip


def drawing(kind: str) -> dict:
    """A drawing step (one unet call, guidance, float16) with concepts over the stock pipeline's, and loading them."""
    pipe = base(kind, torch.float16)
    stock = median_ms(one_step(pipe, kind, PROMPT))
    figures = {"px": side(kind), "stock_ms": stock, "peak_mib": peak_mib()}
    for count in (1, 16, 20 if OPTIONS.tiny else 1000):
        concepts = random_concepts(pipe, count)
        clear()
        started = time.perf_counter()
        handle = load_concepts(pipe, concepts)
        wait()
        loaded = time.perf_counter() - started
        ms = median_ms(one_step(pipe, kind, PROMPT))
        figures[f"concepts_{count}"] = {"ms": ms, "over_stock": round(ms / stock, 4), "load_s": round(loaded, 3),
                                      "peak_mib": peak_mib()}  # fmt: skip
        handle.unload()
    return figures | {"stock_again_ms": median_ms(one_step(pipe, kind, PROMPT))}


def compiled_sd15() -> dict:
    """The same on SD 1.5 under torch.compile: stock, then one concept."""
    pipe, figures = base("sd15", torch.float16), {}
    BASES.clear()
    pipe.unet = torch.compile(pipe.unet)
    for name, count in (("stock", 0), ("concepts_1", 1)):
        handle = load_concepts(pipe, random_concepts(pipe, count)) if count else None
        started = time.perf_counter()
        call = one_step(pipe, "sd15", PROMPT)
        call()
        wait()
        first = time.perf_counter() - started
        figures[name] = {"ms": median_ms(call), "first_call_s": round(first, 1)}
        if handle:
            handle.unload()
    return figures


class Clock(pl.Callback):
    def __init__(self):
        self.times = []

    def on_train_batch_start(self, *args):
        wait()
        self.started = time.perf_counter()

    def on_train_batch_end(self, *args):
        wait()
        self.times.append(time.perf_counter() - self.started)


def modules(pipe, data: Latents, batch: int):
    """(name, a function that makes its LightningModule) of Perfusion and every baseline."""
    C = torch.eye(text_encoder_of(pipe).config.hidden_size)
    yield "perfusion", lambda: PerfusionModule(
        pipe, data, "teddy*", "teddy", C, beta=0.75, tau=0.1, lock="local", batch_size=batch, i_star_decay=0.99, seed=0,
        learning_rate={"o_star": 0.03, "embedding": 0.006, "relative": False},
    )  # fmt: skip

    def baseline(name):
        method = OmegaConf.to_container(OmegaConf.load(CONF / f"method/{name}.yaml"), resolve=False)
        method |= {"learning_rate": 1e-4, "prior_pictures": 0}
        cls = hydra.utils.get_object(method["module"])
        module = cls(pipe, data, "teddy*", "teddy", method=method, batch_size=batch, seed=0, sampling=None)
        if name == "custom_diffusion":  # as if the base model had drawn its regularisation pictures
            module.prior = torch.randn_like(data.latents.cpu())
        return module

    for name in ("textual_inversion", "dreambooth_lora", "custom_diffusion"):
        yield name, lambda name=name: baseline(name)


def training(kind: str) -> dict:
    """A training step of every method, batch 4 (Custom Diffusion's with 4 more regularisation pictures), bfloat16 weights and
    mixed precision, gradient checkpointing; float32 trained numbers. 400 steps are of an effective batch of 16."""
    pipe, batch, steps = base(kind, torch.bfloat16), 4, 7
    figures, cells, g = {"px": side(kind)}, side(kind) // 8, torch.Generator().manual_seed(0)
    data = Latents(torch.randn(5, 4, cells, cells, generator=g), torch.ones(5, 1, cells, cells), side(kind))
    pipe.unet.enable_gradient_checkpointing()
    for name, make in modules(pipe, data, batch):
        clear()
        module, clock = make(), Clock()
        trainer = pl.Trainer(
            max_steps=steps, accelerator="gpu" if GPU else "cpu", devices=1, precision="bf16-mixed", callbacks=[clock],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, range(steps))
        step = statistics.median(clock.times[2:])
        figures[name] = {
            "ms": round(1000 * step, 1), "minutes_of_400_steps": round(step * 400 * 16 / batch / 60, 2), "peak_mib": peak_mib(),
            "trained_numbers": sum(p.numel() for p in module.parameters()),
        }  # fmt: skip
        module.detach()
        del module, trainer
    pipe.unet.disable_gradient_checkpointing()
    return figures


@contextmanager
def at_most(gib: float):
    """The allocator refuses more, as on a smaller card."""
    if not GPU:
        yield
        return
    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def memory(kind: str) -> dict:
    """perfusion train itself, two steps of the presets for small cards, in the memory that they are for."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        base(kind, torch.float16).save_pretrained(f"{folder}/pipe")
        BASES.clear()
        for preset, gib in (("gpu_8gb", 8), ("gpu_24gb", 24)) if kind == "sd15" else (("gpu_24gb", 24),):
            clear()
            here = (
                [f"trainer={preset}"]
                if GPU
                else ["trainer=cpu", "trainer.precision=32-true", "trainer.accumulate_grad_batches=2"]
            )
            tiny = ["model.resolution=64", "batch_size=1"] if OPTIONS.tiny else []
            cfg = composed(
                f"model={kind}", *here, *tiny, f"model.path={folder}/pipe", f"model.scorer=local-dir:{ASSETS}/emojiland/open_clip",
                "masks=null", "covariance.captions=2000", "max_steps=2", "selection.every=null", "picture=false",
                "attention=false", "+trainer.enable_progress_bar=false",
            )  # fmt: skip
            row = {"allowed_gib": gib if GPU else None}
            with at_most(gib):
                try:
                    (Path(folder) / preset).mkdir()
                    started = time.perf_counter()
                    train(cfg, Path(folder) / preset)
                    row |= {"fits": True, "seconds_of_two_steps_and_setup": round(time.perf_counter() - started, 1)}
                except torch.cuda.OutOfMemoryError as error:
                    row |= {"fits": False, "error": str(error).splitlines()[0][:200]}
            rows[preset] = row | {"peak_mib": peak_mib()}
    clear()
    return rows


OF_A_KIND = [unload, drawing, training, memory]
SECTIONS = {"edit_precision": edit_precision, "learning": learning}
SECTIONS |= {f"{f.__name__}_sd15": partial(f, "sd15") for f in OF_A_KIND} | {"emojiland_job": emojiland_job}
SECTIONS |= {f"{f.__name__}_sdxl": partial(f, "sdxl") for f in OF_A_KIND} | {"compiled_sd15": compiled_sd15}


def main() -> int:
    started, path = time.perf_counter(), Path(OPTIONS.results)
    result = json.loads(path.read_text()) if path.exists() else {}
    result["device"] = torch.cuda.get_device_name() if GPU else "CPU"
    result["shapes"] = "tiny" if OPTIONS.tiny else "true"
    result["surroundings"] = {k: v for k, v in surroundings().items() if k != "peak_mib"}
    failed = False
    for name in OPTIONS.sections or SECTIONS:
        if time.perf_counter() - started > 60 * OPTIONS.minutes:
            result.setdefault(name, {"skipped": f"{OPTIONS.minutes} minutes were over"})
            continue
        clear()
        began = time.perf_counter()
        try:
            result[name] = SECTIONS[name]()
        except Exception as error:  # the other sections are still to be had
            traceback.print_exc()
            result[name], failed = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}, True
        result[name]["took_seconds"] = round(time.perf_counter() - began, 1)
        write_json(path, result)
        print(f"{time.perf_counter() - started:5.0f} s  {name}: {json.dumps(result[name])[:600]}", flush=True)
    write_json(path, result)
    print(f"written: {path}")
    return int(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"of: {', '.join(SECTIONS)}")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--results", type=Path, default=Path("results/gpu.json"))
    OPTIONS = parser.parse_args()
    if unknown := [name for name in OPTIONS.sections if name not in SECTIONS]:
        parser.error(f"unknown sections {unknown}; there are: {', '.join(SECTIONS)}")
    sys.exit(main())
