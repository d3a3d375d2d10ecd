"""The sections of measure_gpu.py that train: is it right on the device, how long is a step, do small cards hold it."""

import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import hydra
import numpy as np
import pytorch_lightning as pl
import torch
from gpu_device import BASES, DEVICE, GPU, OPTIONS, base, clear, peak_mib, side, wait
from omegaconf import OmegaConf

from perfusion import config
from perfusion.config import CONF
from perfusion.experiments.figures import composed
from perfusion.learning.data import Latents
from perfusion.learning.methods import put_on
from perfusion.learning.models import load_pipeline
from perfusion.learning.module import PerfusionModule
from perfusion.learning.train import build, check, concept_of, fit, train
from perfusion.method.concept import Concept
from perfusion.method.sampling import Sampling, draw
from perfusion.method.text_encoders import text_encoder_of


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
        cls = hydra.utils.get_class(method["module"])
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
                f"model={kind}", *here, *tiny, f"model.path={folder}/pipe", f"model.scorer=local-dir:{config.ASSETS}/emojiland/open_clip",
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
