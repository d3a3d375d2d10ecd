"""What a GPU makes of it: is it right in half precision, how long, how much memory; random weights at SD 1.5's and SDXL's shapes.

python scripts/measure_gpu.py                 # every section, about 5 minutes on one H100; writes results/gpu.json
python scripts/measure_gpu.py drawing_sd15 memory_sd15   # these sections alone, into the same file
python scripts/measure_gpu.py --tiny          # tiny shapes, on a CPU too, to try the script

Each section's result is written as soon as it is there, its error in its place where it failed (the exit code is then 1). No
section begins after --minutes. Times are medians after a warm-up, the device waited for; memory is the allocator's peak.
"""

import argparse
import json
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import torch
from gpu_device import (
    BASES,
    DEVICE,
    GPU,
    OPTIONS,
    PROMPT,
    base,
    clear,
    median_ms,
    one_step,
    peak_mib,
    random_concepts,
    side,
    wait,
)
from gpu_training import emojiland_job, learning, memory, training

from perfusion.atomic import write_json
from perfusion.method.edit import augment
from perfusion.method.layers import WidenedLinear
from perfusion.method.pipeline import load_concepts
from perfusion.results import surroundings


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


OF_A_KIND = [unload, drawing, training, memory]
SECTIONS = {"edit_precision": edit_precision, "learning": learning}
SECTIONS |= {f"{f.__name__}_sd15": partial(f, "sd15") for f in OF_A_KIND} | {"emojiland_job": emojiland_job}
SECTIONS |= {f"{f.__name__}_sdxl": partial(f, "sdxl") for f in OF_A_KIND} | {"compiled_sd15": compiled_sd15}


def main(options) -> int:
    started, path = time.perf_counter(), Path(options.results)
    result = json.loads(path.read_text()) if path.exists() else {}
    result["device"] = torch.cuda.get_device_name() if GPU else "CPU"
    result["shapes"] = "tiny" if options.tiny else "true"
    result["surroundings"] = surroundings()
    failed = False
    for name in options.sections or SECTIONS:
        if time.perf_counter() - started > 60 * options.minutes:
            result.setdefault(name, {"skipped": f"{options.minutes} minutes were over"})
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
    given = parser.parse_args()
    if unknown := [name for name in given.sections if name not in SECTIONS]:
        parser.error(f"unknown sections {unknown}; there are: {', '.join(SECTIONS)}")
    OPTIONS.tiny = given.tiny
    sys.exit(main(given))
