"""Time a denoising step with concepts against the stock pipeline's, in turn, on a whole random UNet of SD 1.5's or SDXL's shape.

python scripts/measure_step_cost.py                   # writes results/step_cost.json; about 4 GB of memory
python scripts/measure_step_cost.py --shape sdxl      # writes results/step_cost_sdxl.json; about 11 GB
python scripts/measure_step_cost.py --tiny --rounds 1 --results /tmp/step.json
"""

import statistics
import time
from types import SimpleNamespace

import torch
from shapes import UNETS, options_of, results_of, shape_of

from perfusion.atomic import write_json
from perfusion.method.denoiser import predict
from perfusion.method.edit import augment
from perfusion.method.layers import cross_attentions, widen

SIZE, TOKENS = 32, 77  # latents of 256 x 256 pictures; CLIP's tokens


@torch.no_grad()
def main(options) -> dict:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    unet = UNETS[options.shape](options.tiny).eval()
    d = unet.config.cross_attention_dim
    x, e = torch.randn(2, 4, SIZE, SIZE), torch.randn(2, TOKENS, d)
    pooled = None
    if options.shape == "sdxl":
        of_time = 6 * unet.config.addition_time_embed_dim
        pooled = torch.randn(2, unet.config.projection_class_embeddings_input_dim - of_time)
    step = lambda t, encodings: predict(
        SimpleNamespace(unet=unet), x, torch.tensor(t), encodings, 8 * SIZE, pooled=pooled
    )
    widths = {n: a.to_v.out_features for n, a in cross_attentions(unet).items()}
    seconds: dict[int, list[float]] = {0: [], 1: [], 16: []}
    for turn in range(options.rounds + 1):  # the first turn warms up
        for concepts, measured in seconds.items():
            encodings, widened = e, None
            if concepts:
                i_star, key = torch.randn(concepts, d), torch.randn(concepts, d)
                o_star = {n: torch.randn(concepts, w) for n, w in widths.items()}
                widened = widen(unet, i_star, o_star, o_star)
                encodings = augment(e, i_star, key, torch.tensor(0.75), torch.tensor(0.1))
                encodings = torch.cat([encodings, encodings], -1)
            step(999, encodings)  # the first step of a prompt computes K and V; the others are what is timed
            start = time.perf_counter()
            step(500, encodings)
            if turn:
                measured.append(time.perf_counter() - start)
            if widened:
                widened.restore()
    ratio = lambda j: round(statistics.median(a / b for a, b in zip(seconds[j], seconds[0])), 4)
    result = {
        "what": f"one UNet call, batch 2, {SIZE} x {SIZE} latents, {shape_of(options)}, float32; "
        f"medians of {options.rounds} turns",
        "seconds_stock": round(statistics.median(seconds[0]), 4),
        "ratio_1": ratio(1),
        "ratio_16": ratio(16),
        "trainable": d + sum(widths.values()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(write_json(results_of("step_cost", options), result))
    return result


if __name__ == "__main__":
    main(options_of(__doc__, rounds=7).parse_args())
