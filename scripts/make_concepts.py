"""Draw data/concepts/NAME/*.png: each held-out drawing photographed in five places, as a user would.

python scripts/make_concepts.py
"""

from pathlib import Path

import numpy as np

from perfusion.emojiland.scenes import Facts, draw
from perfusion.emojiland.vocabulary import FINAL, HELD_OUT, PLACES

SEED, PHOTOS = 11, 5


def main(target: Path = Path("data/concepts"), conf: Path = Path("conf/concept")) -> None:
    for number, (name, artist) in enumerate(HELD_OUT.items()):
        folder = target / name
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([SEED, number])
        for photo, place in enumerate([None, *rng.permutation(list(PLACES))[: PHOTOS - 1]]):
            draw(Facts(name, artist, place=place and str(place)), rng)[0].save(folder / f"{photo}.png", optimize=True)
        (folder / "concept.yaml").write_text(
            f"name: {name}* # the word to use in prompts\n"
            f"super_category: {name} # whose keys it is locked to: one token of the model's vocabulary\n"
            f"artist: {artist} # whose drawing it is (for the reader's identity score)\n"
            f"split: {'final' if name in FINAL else 'dev'} # final: for the committed evaluation only\n"
        )
        (conf / f"{name}.yaml").write_text(
            f"# What is not given here is read from {folder}/concept.yaml.\nimages: ${{root:{folder}}}\n"
            "name: null\nsuper_category: null\n"
        )


if __name__ == "__main__":
    main()
