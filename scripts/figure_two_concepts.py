"""Two concepts learned apart, in one prompt: Perfusion's beside two LoRAs. Pictures, and how often the reader finds both.

python scripts/figure_two_concepts.py [Hydra overrides of perfusion train]     # docs/two_concepts.png, results/two_concepts.json

Dev concepts alone, learned as experiment=baselines learns them, in the very trainings where they are there; the second cat is
another artist's, in colours of its own. A method is shown at the strength at which the reader finds both drawings most often.
"""

import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from perfusion.baselines.dreambooth_lora import DreamBoothLoRA
from perfusion.config import ASSETS, ROOT
from perfusion.emojiland.pretraining import pixels
from perfusion.emojiland.reader import HEADS, Reader
from perfusion.emojiland.scenes import Facts, draw
from perfusion.emojiland.vocabulary import HELD_OUT, PLACES
from perfusion.experiments.figures import composed, learned
from perfusion.learning.models import load_pipeline
from perfusion.method.pipeline import load_concepts
from perfusion.method.sampling import Sampling
from perfusion.method.sampling import draw as draw_pictures
from perfusion.plots import grid
from perfusion.results import write_result

SECOND_CAT = Facts("cat", "noto", color="purple", details="green")
PAIRS = (("teddy", "teapot"), ("cat", "owl"), ("robot", "ghost"), ("cat", "second_cat"))
PROMPTS, SEEDS, SHOWN = ("a {} next to a {}", "a {} and a {} in the snow"), 32, 4
# The gate's bias; the LoRA's scale.
STRENGTHS = {"perfusion": (0.6, 0.75, 0.9, 1.0), "dreambooth_lora": (1.0, 0.75, 0.5, 0.25)}
NAMES = {"perfusion": "Perfusion", "dreambooth_lora": "two LoRAs"}


def file_of(method: str, name: str, overrides: list[str]) -> Path:
    """The concept's file; the second cat's from five photos, which are drawn first."""
    if name != "second_cat":
        return learned("baselines", method, name, overrides)[0]
    photos = ROOT / "outputs/second_cat"
    photos.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    for number, place in enumerate([None, *list(PLACES)[:4]]):
        draw(Facts(**{**vars(SECOND_CAT), "place": place}), rng)[0].save(photos / f"{number}.png")
    named = [f"concept.images={photos}", "concept.name=second_cat*", "concept.super_category=cat"]
    return learned("baselines", method, "cat", [*named, *overrides])[0]


def class_of(name: str) -> str:
    return SECOND_CAT.object if name == "second_cat" else name


def drawing_of(name: str) -> tuple[str, str]:
    return class_of(name), SECOND_CAT.artist if name == "second_cat" else HELD_OUT[name]


@contextmanager
def loaded(pipe, method: str, files: dict[str, Path]):
    """Both concepts on the pipeline: gives their words, and the with-block of a strength. LoRAs as diffusers combines them."""
    if method == "perfusion":
        handle = load_concepts(pipe, {f"{name}*": file for name, file in files.items()})
        yield [f"{name}*" for name in files], lambda beta: handle.gate(beta=beta)
        return handle.unload()
    for name, file in files.items():
        pipe.unet.load_lora_adapter(str(file), prefix="unet", adapter_name=name)

    @contextmanager
    def at(scale: float):
        pipe.set_adapters(list(files), [scale] * len(files))
        yield

    yield [DreamBoothLoRA.load(file).word for file in files.values()], at
    pipe.unload_lora_weights()


def both(reader: Reader, pictures: list, names: tuple[str, str]) -> dict[str, float]:
    """Shares of pictures of which the reader names both classes, and both drawings, as the two likeliest."""
    logits = reader(pixels(np.stack([np.asarray(p) for p in pictures])))
    asked = {"object": {class_of(name) for name in names}, "drawing": {drawing_of(name) for name in names}}
    shares = {}
    for head, wanted in asked.items():
        likeliest = [{HEADS[head][i] for i in row.topk(2).indices.tolist()} for row in logits[head]]
        shares[head] = round(float(np.mean([wanted <= seen for seen in likeliest])), 4)
    return shares


def main(overrides: list[str]) -> None:
    names = {name for pair in PAIRS for name in pair}
    files = {method: {name: file_of(method, name, overrides) for name in sorted(names)} for method in STRENGTHS}
    cfg = composed(*overrides)
    pipe, reader, rows, pairs = load_pipeline(cfg.model), Reader.load(ASSETS / "emojiland/reader"), [], {}
    bests = {method: [] for method in STRENGTHS}
    sampling, seeds = Sampling.of(cfg.model), list(range(SEEDS * len(PROMPTS)))
    texts = lambda words: [prompt.format(*words) for prompt in PROMPTS for _ in range(SEEDS)]
    for pair in PAIRS:
        drawn = draw_pictures(pipe, texts([class_of(name) for name in pair]), seeds, sampling)
        of_pair = {"base model": both(reader, drawn, pair)}
        for method, strengths in STRENGTHS.items():
            points = []
            with loaded(pipe, method, {name: files[method][name] for name in pair}) as (words, at):
                for strength in strengths:
                    with at(strength):
                        drawn = draw_pictures(pipe, texts(words), seeds, sampling)
                    points.append((both(reader, drawn, pair) | {"strength": strength}, drawn))
            of_pair[method] = [point for point, _ in points]
            best, drawn = max(points, key=lambda p: (p[0]["drawing"], p[0]["object"]))
            bests[method].append(best["drawing"])
            shown = [i for start in (0, SEEDS) for i in range(start, start + SHOWN)]
            label = f"{NAMES[method]}\nat {best['strength']}"
            rows.append((label, [(texts([f"{name}*" for name in pair])[i], drawn[i]) for i in shown]))
        pairs[" + ".join(pair)] = of_pair
        print(" + ".join(pair), of_pair, flush=True)
    grid(rows, ROOT / "docs/two_concepts.png", cell=1.1)
    means = {method: round(float(np.mean(shares)), 4) for method, shares in bests.items()}
    result = {
        "what": "shares of pictures of which the reader names both classes, and both drawings, as its two likeliest",
        "prompts": PROMPTS,
        "pictures": len(seeds),
        "pairs": pairs,
        "both_drawings_at_the_best_strength": means | {"gain": round(means["perfusion"] - means["dreambooth_lora"], 4)},
    }
    write_result(ROOT / "results/two_concepts.json", result)
    print(f"written: {ROOT / 'docs/two_concepts.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
