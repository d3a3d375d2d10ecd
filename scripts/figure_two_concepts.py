"""Two learned concepts in one prompt: of different classes, and of one class. Pictures, and how often the reader finds both.

python scripts/figure_two_concepts.py [Hydra overrides of perfusion train]     # docs/two_concepts.png, results/two_concepts.json

Dev concepts alone, learned as scripts/figure_concepts.py learns them; the second cat is another artist's, in colours of its own.
"""

import sys
from pathlib import Path

import numpy as np
from figure_concepts import FOLDER, learned
from hydra import compose, initialize_config_dir

from perfusion.atomic import write_json
from perfusion.config import ASSETS, CONF, ROOT
from perfusion.emojiland.pretraining import pixels
from perfusion.emojiland.reader import HEADS, Reader
from perfusion.emojiland.scenes import Facts, draw
from perfusion.emojiland.vocabulary import HELD_OUT, PLACES
from perfusion.learning.models import load_pipeline
from perfusion.method.pipeline import load_concepts
from perfusion.method.sampling import Sampling
from perfusion.method.sampling import draw as draw_pictures
from perfusion.plots import grid

SECOND_CAT = Facts("cat", "noto", color="purple", details="green")
PAIRS = (("teddy", "teapot"), ("cat", "owl"), ("robot", "ghost"), ("cat", "second_cat"))
PROMPTS, SEEDS, SHOWN = ("a {} next to a {}", "a {} and a {} in the snow"), 32, 4


def second_cat(overrides: list[str]) -> Path:
    """Five photos of SECOND_CAT, learned as `second_cat*`."""
    photos = FOLDER / "second_cat_photos"
    photos.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    for number, place in enumerate([None, *list(PLACES)[:4]]):
        facts = Facts(**{**vars(SECOND_CAT), "place": place})
        draw(facts, rng)[0].save(photos / f"{number}.png")
    named = [f"concept.images={photos.resolve()}", "concept.name=second_cat*", "concept.super_category=cat"]
    return learned("second_cat", [*named, *overrides], "cat")


def drawing_of(name: str) -> tuple[str, str]:
    return (SECOND_CAT.object, SECOND_CAT.artist) if name == "second_cat" else (name, HELD_OUT[name])


def both(reader: Reader, pictures: list, names: tuple[str, str]) -> dict[str, float]:
    """Shares of pictures of which the reader names both classes, and both drawings, as the two likeliest."""
    logits = reader(pixels(np.stack([np.asarray(p) for p in pictures])))
    asked = {"object": {drawing_of(name)[0] for name in names}, "drawing": {drawing_of(name) for name in names}}
    shares = {}
    for head, wanted in asked.items():
        likeliest = [{HEADS[head][i] for i in row.topk(2).indices.tolist()} for row in logits[head]]
        shares[head] = round(float(np.mean([wanted <= seen for seen in likeliest])), 4)
    return shares


def main(overrides: list[str]) -> None:
    files = {n: second_cat(overrides) if n == "second_cat" else learned(n, overrides) for pair in PAIRS for n in pair}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides)
    pipe, reader, rows, found = load_pipeline(cfg.model), Reader.load(ASSETS / "emojiland/reader"), [], {}
    for pair in PAIRS:
        handle = load_concepts(pipe, {f"{name}*": files[name] for name in pair})
        texts = [prompt.format(*(f"{name}*" for name in pair)) for prompt in PROMPTS for _ in range(SEEDS)]
        drawn = draw_pictures(pipe, texts, list(range(len(texts))), Sampling.of(cfg.model))
        handle.unload()
        found[" + ".join(pair)] = both(reader, drawn, pair) | {"pictures": len(drawn)}
        shown = [i for start in (0, SEEDS) for i in range(start, start + SHOWN)]
        rows.append((" and\n".join(f"{name}*" for name in pair), [(texts[i], drawn[i]) for i in shown]))
    grid(rows, ROOT / "docs/two_concepts.png", cell=1.1)
    result = {
        "what": "shares of pictures of which the reader names both as its two likeliest",
        "prompts": PROMPTS,
        "pairs": found,
    }
    print(write_json(ROOT / "results/two_concepts.json", result))
    print(f"written: {ROOT / 'docs/two_concepts.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
