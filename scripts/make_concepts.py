"""Draw data/concepts/NAME/*.png: each held-out drawing photographed in five places, as a user would.

python scripts/make_concepts.py

And data/one_place/NAME/*.png, all five photos in one place: what a background that is in every picture does to a concept.
`concept=NAME` and `concept=one_place/NAME` learn from them.
"""

from pathlib import Path

import numpy as np

from perfusion.emojiland.scenes import Facts, draw
from perfusion.emojiland.vocabulary import FINAL, HELD_OUT, PLACES

SEED, PHOTOS = 11, 5


def main(target: Path = Path("data"), conf: Path = Path("conf/concept")) -> None:
    for number, (name, artist) in enumerate(HELD_OUT.items()):
        rng = np.random.default_rng([SEED, number])
        photos(target / "concepts" / name, [None, *rng.permutation(list(PLACES))[: PHOTOS - 1]], rng)
        described(target / "concepts" / name, conf / f"{name}.yaml")
        rng = np.random.default_rng([SEED, number, 1])
        photos(target / "one_place" / name, [rng.choice(list(PLACES))] * PHOTOS, rng)
        described(target / "one_place" / name, conf / f"one_place/{name}.yaml")


def photos(folder: Path, places: list[str | None], rng: np.random.Generator) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for photo, place in enumerate(places):
        facts = Facts(folder.name, HELD_OUT[folder.name], place=place and str(place))
        draw(facts, rng)[0].save(folder / f"{photo}.png", optimize=True)


def described(folder: Path, conf: Path) -> None:
    """The concept.yaml beside the photos, and the file by which `concept=` finds them."""
    name = folder.name
    (folder / "concept.yaml").write_text(
        f"name: {name}* # the word to use in prompts\n"
        f"super_category: {name} # whose keys it is locked to: one token of the model's vocabulary\n"
        f"artist: {HELD_OUT[name]} # whose drawing it is (for the reader's identity score)\n"
        f"split: {'final' if name in FINAL else 'dev'} # final: for the committed evaluation only\n"
    )
    conf.parent.mkdir(exist_ok=True)
    conf.write_text(
        f"# What is not given here is read from {folder}/concept.yaml.\nimages: ${{root:{folder}}}\n"
        "name: null\nsuper_category: null\n"
    )


if __name__ == "__main__":
    main()
