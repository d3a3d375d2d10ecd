"""Time and memory of a training step beside diffusers' textual inversion and DreamBooth-LoRA, at SD 1.5's true shape,
or beside textual inversion alone at SDXL's, where ours in bfloat16 comes by itself afterwards, so that it fits 24 GB of memory.

python scripts/measure_train_step_cost.py                    # writes results/train_step_cost.json; 256 x 256, batch 1
python scripts/measure_train_step_cost.py --shape sdxl       # writes results/train_step_cost_sdxl.json
python scripts/measure_train_step_cost.py --tiny --rounds 2 --results /tmp/cost.json

One process builds the frozen model with random weights and forks a worker for every arm, so that all share its memory.
The workers take turns, one step each a round; a round's times are compared with each other, and the medians of those
ratios are written. Memory is the worker's highest resident set during its steps (the shared weights and libraries,
equal in all, counted in each).

The arms are written after diffusers' examples/textual_inversion/textual_inversion.py, textual_inversion_sdxl.py and
examples/dreambooth/train_dreambooth_lora.py (defaults, float32): all encode the pictures with the VAE in every step;
textual inversion's optimiser holds the whole table of token embeddings (SDXL: both), of which it then puts all rows but one
back. Ours is PerfusionModule under a Lightning Trainer, as perfusion train runs it: latents encoded once, the attention and the
layout that learning.models chooses, gradients for one embedding and the o*_V. It is timed in float32, as the examples are, and
in bfloat16, which perfusion train chooses on a CPU that has it. textual_inversion_cached is the example with the latents
encoded once and that same attention and layout, for what the method itself costs.
"""

import os
import statistics
import tempfile
import time
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from peft import LoraConfig
from PIL import Image
from shapes import PIPELINES, options_of, results_of, shape_of

from perfusion.atomic import write_json
from perfusion.config import native_bfloat16
from perfusion.learning.data import ConceptData
from perfusion.learning.models import channels_last, plain_attention
from perfusion.learning.module import PerfusionModule
from perfusion.learning.noising import noising_of
from perfusion.method.denoiser import predict
from perfusion.method.edit import inverse_metric
from perfusion.method.text import tokenize, towers
from perfusion.method.text_encoders import text_encoder_of, tokenizers_of
from perfusion.results import forget_peak, peak_mib

# What takes turns; SDXL's bfloat16 by itself afterwards, as its copies of the weights do not fit beside the others.
ARMS = {
    "sd15": [("perfusion", "perfusion_bfloat16", "textual_inversion", "textual_inversion_cached", "dreambooth_lora")],
    "sdxl": [("perfusion", "textual_inversion"), ("perfusion_bfloat16",)],
}


class Turn:
    """One worker's end: `begin` waits until it is called upon, `end` reports its seconds and peak."""

    def __init__(self, connection):
        self.connection = connection

    def begin(self) -> None:
        self.connection.recv()
        forget_peak()
        self.start = time.perf_counter()

    def end(self) -> None:
        self.connection.send((time.perf_counter() - self.start, peak_mib()))


def perfusion(pipe, turn: Turn, steps: int, batch: int, resolution: int, precision: str = "32-true") -> int:
    class Turns(pl.Callback):
        def on_train_batch_start(self, *args):
            turn.begin()

        def on_train_batch_end(self, *args):
            turn.end()

    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(pixels(1, resolution)[0]).save(f"{folder}/0.png")
        data = ConceptData([Path(folder) / "0.png"], resolution, "teddy", "", None, flip=False).encode(pipe.vae)
    as_models_are_loaded(pipe, resolution)
    d = text_encoder_of(pipe).config.hidden_size
    module = PerfusionModule(
        pipe, data, "teddy*", "teddy", inverse_metric(torch.eye(d), 0.0), beta=0.75, tau=0.1, lock="local",
        batch_size=batch, i_star_decay=0.99, seed=0,
        learning_rate={"o_star": 0.03, "embedding": 0.006, "relative": False},
    )  # fmt: skip
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", precision=precision, callbacks=[Turns()], **quiet)
    turn.connection.send("ready")
    trainer.fit(module, range(steps))
    return sum(p.numel() for p in module.parameters())


def perfusion_bfloat16(*args) -> int:
    return perfusion(*args, precision="bf16-mixed")


def textual_inversion(pipe, turn: Turn, steps: int, batch: int, resolution: int, cached: bool = False) -> int:
    for frozen in (pipe.vae, pipe.unet, text_encoder_of(pipe)):
        frozen.requires_grad_(False)
    if cached:
        as_models_are_loaded(pipe, resolution)
    for tokenizer in tokenizers_of(pipe).values():
        tokenizer.add_tokens("<teddy>")
    text_encoder = text_encoder_of(pipe).train()
    for tower in towers(text_encoder):
        tower.resize_token_embeddings(len(pipe.tokenizer))
    tables = [tower.get_input_embeddings().requires_grad_(True).weight for tower in towers(text_encoder)]
    originals = [table.detach().clone() for table in tables]
    others = torch.ones(len(pipe.tokenizer), dtype=torch.bool)
    others[pipe.tokenizer.convert_tokens_to_ids("<teddy>")] = False
    optimizer = torch.optim.AdamW(tables, lr=5e-4, weight_decay=1e-2)
    x, ids = batch_of(pipe, "a photo of a <teddy>", batch, resolution)
    once = encode(pipe.vae, x) if cached else None
    turn.connection.send("ready")
    for _ in range(steps):
        turn.begin()
        denoising_loss(pipe, once if cached else encode(pipe.vae, x), ids, resolution).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for table, original in zip(tables, originals):
                table[others] = original[others]
        turn.end()
    return sum(table.numel() for table in tables)


def textual_inversion_cached(*args) -> int:
    return textual_inversion(*args, cached=True)


def dreambooth_lora(pipe, turn: Turn, steps: int, batch: int, resolution: int) -> int:
    for frozen in (pipe.vae, pipe.unet, pipe.text_encoder):
        frozen.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    pipe.unet.train()
    trained = [p for p in pipe.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=1e-2)
    x, ids = batch_of(pipe, "a photo of a sks teddy", batch, resolution)
    turn.connection.send("ready")
    for _ in range(steps):
        turn.begin()
        denoising_loss(pipe, encode(pipe.vae, x), ids, resolution).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turn.end()
    return sum(p.numel() for p in trained)


def as_models_are_loaded(pipe, resolution: int) -> None:
    """The layout and the attention that perfusion train chooses on a CPU."""
    channels_last(pipe)
    plain_attention(pipe, resolution)


def pixels(batch: int, resolution: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (batch, resolution, resolution, 3), np.uint8)


def batch_of(pipe, prompt: str, batch: int, resolution: int):
    """Pictures [B, 3, H, W] in [-1, 1] and token ids [B, 77], as the examples' data loaders give them."""
    x = torch.from_numpy(pixels(batch, resolution)).permute(0, 3, 1, 2).contiguous() / 127.5 - 1
    return x, tokenize(pipe.tokenizer, [prompt] * batch)


def encode(vae, x):
    return vae.encode(x).latent_dist.sample().detach() * vae.config.scaling_factor


def denoising_loss(pipe, latents, ids, resolution: int):
    noising, noise = noising_of(pipe.scheduler), torch.randn_like(latents)
    encodings, pooled = text_encoder_of(pipe)(ids)[:2]
    noisy, t = noising.noisy(latents, noise, torch.randint(0, noising.steps, (len(latents),)))
    return F.mse_loss(predict(pipe, noisy, t, encodings, resolution, pooled=pooled), noise)


def work(arm: str, pipe, connection, options) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    forget_peak()
    trained = globals()[arm](pipe, Turn(connection), options.rounds + 1, options.batch, options.resolution)
    connection.send(trained)


def turns(arms: list[str], pipe, options) -> tuple[list[dict], dict[str, int]]:
    """Each round's (seconds, MiB) by arm, and how many numbers each arm trains."""
    context, workers = get_context("fork"), {}
    for arm in arms:
        here, there = context.Pipe()
        process = context.Process(target=work, args=(arm, pipe, there, options), daemon=True)
        process.start()
        there.close()
        workers[arm] = (process, here)
        here.recv()  # set up, one after the other; EOFError where it died
    rounds = []
    for turn in range(options.rounds + 1):  # the first warms up
        measured = {}
        for arm, (_, here) in workers.items():
            here.send("go")
            measured[arm] = here.recv()
        rounds.append(measured)
        print(turn, {arm: f"{s:.2f} s, {m:.0f} MiB" for arm, (s, m) in measured.items()}, flush=True)
    trained = {arm: here.recv() for arm, (_, here) in workers.items()}
    for process, _ in workers.values():
        process.join()
    return rounds, trained


def main(options) -> dict:
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    pipe = PIPELINES[options.shape](options.tiny)
    rounds, trained = [{} for _ in range(options.rounds + 1)], {}
    for group in ARMS[options.shape]:
        if arms := [arm for arm in group if arm != "perfusion_bfloat16" or native_bfloat16()]:
            measured, numbers = turns(arms, pipe, options)
            rounds, trained = [one | more for one, more in zip(rounds, measured)], trained | numbers
    timed, arms = rounds[1:], list(trained)
    peak = {arm: max(measured[arm][1] for measured in rounds) for arm in arms}
    result = {
        "what": f"a training step at {shape_of(options)}, random weights, float32, "
        f"batch {options.batch}, {options.resolution} x {options.resolution}; medians of {options.rounds} turns",
        "seconds": {arm: round(statistics.median(measured[arm][0] for measured in timed), 4) for arm in arms},
        "peak_mib": {arm: round(m) for arm, m in peak.items()},
        "weights_mib": round(
            sum(w.nbytes for part in (pipe.unet, pipe.vae, text_encoder_of(pipe)) for w in part.parameters()) / 2**20
        ),
        "trained": trained,
    }
    for arm in arms[1:]:
        ratio = statistics.median(measured["perfusion"][0] / measured[arm][0] for measured in timed)
        result[f"time_vs_{arm}"] = round(ratio, 4)
        result[f"memory_vs_{arm}"] = round(peak["perfusion"] / peak[arm], 4)
    if "perfusion_bfloat16" in arms:
        ratios = (measured["perfusion_bfloat16"][0] / measured["textual_inversion"][0] for measured in timed)
        result["bfloat16_time_vs_textual_inversion"] = round(statistics.median(ratios), 4)
    result |= {"threads": options.threads, "cores": os.cpu_count()}
    result |= {name: version(name) for name in ("torch", "diffusers", "peft")}
    print(write_json(results_of("train_step_cost", options), result))
    return result


if __name__ == "__main__":
    parser = options_of(__doc__)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=256, help="pixels")
    main(parser.parse_args())
