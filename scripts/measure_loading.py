"""Loading a concept, and 1,000 of them resident: time, memory and the cost of a denoising step, at SD 1.5's or SDXL's shape.

python scripts/measure_loading.py                     # writes results/loading.json
python scripts/measure_loading.py --shape sdxl        # writes results/loading_sdxl.json; the whole pipeline, about 18 GB
python scripts/measure_loading.py --tiny --concepts 50 --rounds 2 --results /tmp/loading.json

`file_ms` is Concept.load; `load_ms_first` is load_concepts of one file onto a fresh pipeline, which adds the hash of the
base model's weights, a tokenizer with one more word and the encoding of the super-category's word (its `of_which_`
parts); `load_ms` is the same again, the hash and the encoding's keys being remembered then; `load_all_ms` is load_concepts of
them all, `encode_ms_all` a prompt's encodings then, beside the stock pipeline's. Resident concepts are Concept objects in
memory, and their rows in the widened layers; a step is one UNet call on a batch of 2 whose prompt holds one of them, in
turn with the stock UNet's.
"""

import os
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from shapes import PIPELINES, options_of, results_of, shape_of

from perfusion.atomic import write_json
from perfusion.method.concept import Concept
from perfusion.method.denoiser import predict
from perfusion.method.edit import augment
from perfusion.method.fingerprint import base_hash
from perfusion.method.layers import cross_attentions, widen
from perfusion.method.pipeline import load_concepts
from perfusion.method.text import add_placeholders, encoded, super_encoding, word_embedding
from perfusion.method.text_encoders import text_encoder_of


def resident() -> float:
    """VmRSS of this process, MiB."""
    return next(int(l.split()[1]) / 1024 for l in open("/proc/self/status") if l.startswith("VmRSS"))


def milliseconds(action, times: int) -> float:
    """Median of several calls."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(taken), 2)


@torch.no_grad()
def main(options) -> dict:
    torch.set_num_threads(options.threads)
    pipe = PIPELINES[options.shape](options.tiny)
    text_encoder = text_encoder_of(pipe)
    d, d_tok = text_encoder.config.hidden_size, len(word_embedding(pipe.tokenizer, text_encoder, "teddy"))
    widths = {name: a.to_v.out_features for name, a in cross_attentions(pipe.unet).items()}
    hash, generator = base_hash(text_encoder, pipe.unet), torch.Generator().manual_seed(0)
    draw = lambda n: torch.randn(n, generator=generator)
    result = {
        "what": f"loading at {shape_of(options)}, random weights, float32; medians of {options.rounds} turns",
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.safetensors" for i in range(options.concepts)]
        for path in paths:
            o_star = {name: draw(w) for name, w in widths.items()}
            i_star = draw(d)  # and C = 1
            Concept("teddy*", "teddy", i_star, i_star, draw(d_tok), o_star, base_hash=hash).save(path)
        result["file_bytes"] = paths[0].stat().st_size
        result["file_ms"] = milliseconds(lambda: Concept.load(paths[0]), 20)
        load = lambda: load_concepts(pipe, {"teddy*": paths[0]})
        result["load_ms_first"] = milliseconds(load, 1)
        result["unload_ms"] = milliseconds(lambda: pipe._perfusion.unload(), 1)
        again = []
        for _ in range(options.rounds):
            again.append(milliseconds(load, 1))
            pipe._perfusion.unload()
        result["load_ms"] = statistics.median(again)
        # What the first load_concepts does beside reading the file and widening the layers.
        result["of_which_base_hash_ms"] = milliseconds(lambda: base_hash(text_encoder, pipe.unet), 3)
        result["of_which_tokenizer_ms"] = milliseconds(lambda: add_placeholders(pipe.tokenizer, ["teddy*"]), 3)
        word = lambda: super_encoding(pipe.tokenizer, text_encoder, "teddy")
        result["of_which_super_encoding_ms"] = milliseconds(word, 3)
        before = resident()
        concepts = [Concept.load(path) for path in paths]
    result["concepts"] = len(concepts)
    result["concepts_mib"] = round(resident() - before, 1)
    named = {f"w{i}*": concept for i, concept in enumerate(concepts)}
    result["load_all_ms"] = milliseconds(lambda: load_concepts(pipe, named), 1)
    encode = lambda: pipe.encode_prompt(
        "a w0* on a beach", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    result["encode_ms_all"] = milliseconds(encode, 3)
    pipe._perfusion.unload()
    result["encode_ms_stock"] = milliseconds(encode, 3)

    before, stack = resident(), lambda name: torch.stack([getattr(c, name) for c in concepts])
    i_stars, keys = stack("i_star"), stack("c_inv_i_star")
    o_stars = {name: torch.stack([c.o_star_v[name] for c in concepts]) for name in widths}
    side = 8 if options.tiny else 32  # latents of 64 x 64 and 256 x 256 pictures
    x, e = torch.randn(2, 4, side, side), torch.randn(2, 77, d)
    pooled = encoded(pipe.tokenizer, text_encoder, ["a beach"] * 2).pooled
    step = lambda t, encodings: predict(pipe, x, torch.tensor(t), encodings, 8 * side, pooled=pooled)
    on = torch.zeros(2, len(concepts), dtype=torch.bool)
    on[1, 0] = True  # the first row is the negative prompt
    widened = widen(pipe.unet, i_stars, o_stars, o_stars)
    gated = lambda: augment(e, i_stars, keys, torch.tensor(0.75), torch.tensor(0.1), on)
    result["prompt_ms"] = milliseconds(gated, 3)
    both = torch.cat([gated()] * 2, -1)
    start = time.perf_counter()
    step(999, both)  # computes and keeps every layer's K and V
    result["first_step_ms"] = round(1000 * (time.perf_counter() - start), 1)
    result["layers_mib"] = round(resident() - before, 1)
    ratios, stock = [], []
    for turn in range(options.rounds + 1):  # the first warms up
        with_concepts = milliseconds(lambda: step(500, both), 1)
        with widened.paused():
            without = milliseconds(lambda: step(500, e), 1)
        if turn:
            ratios.append(with_concepts / without)
            stock.append(without)
    result |= {"step_ms_stock": statistics.median(stock), "step_ratio": round(statistics.median(ratios), 4)}
    result |= {"threads": options.threads, "cores": os.cpu_count(), "torch": version("torch")}
    print(write_json(results_of("loading", options), result))
    return result


if __name__ == "__main__":
    parser = options_of(__doc__)
    parser.add_argument("--concepts", type=int, default=1000)
    main(parser.parse_args())
