"""Every held-out concept in its evaluation prompts, unchosen: what a learned concept looks like, where it works and where not.

python scripts/figure_concepts.py [concepts=teddy,cat] [Hydra overrides of perfusion train]     # writes docs/concepts.png

Each concept is learned with the defaults (among the experiments' trainings; what is learned already is not learned again)
and drawn once a prompt, its dev prompts or, for a final concept, the final ones, with seeds 0, 1, ....
"""

import sys

import yaml
from PIL import Image

from perfusion.config import ROOT
from perfusion.emojiland.vocabulary import FINAL, HELD_OUT
from perfusion.experiments.figures import base_model, by_default
from perfusion.method.pipeline import load_concepts
from perfusion.method.sampling import Sampling, draw
from perfusion.plots import grid

PROMPTS = 16


def main(arguments: list[str]) -> None:
    named = [a.removeprefix("concepts=") for a in arguments if a.startswith("concepts=")]
    names = named[0].split(",") if named else list(HELD_OUT)
    overrides = [a for a in arguments if not a.startswith("concepts=")]
    prompts = yaml.safe_load((ROOT / "data/prompts/emojiland.yaml").read_text())
    concepts = {name: by_default(overrides, name) for name in names}
    pipe, rows = base_model(overrides), []
    for name, (concept, cfg, _) in concepts.items():
        asked = prompts["final" if name in FINAL else "dev"]
        texts = [entry["text"].format(f"{name}*") for entry in asked[:PROMPTS]]
        handle = load_concepts(pipe, {f"{name}*": concept})
        drawn = draw(pipe, texts, list(range(len(texts))), Sampling.of(cfg.model))
        handle.unload()
        photos = [Image.open(path) for path in sorted((ROOT / f"data/concepts/{name}").glob("[0-9].png"))[:2]]
        rows.append((f"{name}*", [("photo", photo) for photo in photos] + list(zip(texts, drawn))))
    grid(rows, ROOT / "docs/concepts.png", cell=1.0)
    print(f"written: {ROOT / 'docs/concepts.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
