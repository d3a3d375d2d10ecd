"""Captions that a covariance is measured on: made here, or read from a file or the Hugging Face hub as a stream.

`captions(count)` is the fallback where nobody has a caption file at hand: templates filled with nouns, adjectives,
places and styles, always the same ones. Real captions (`Captions`) are the better choice, since they cover more of the
language.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from perfusion.errors import UserError, install

EDITION = "1"  # of `captions`; another one wherever a caption changes: a covariance of them is known by it
COLUMNS = ("caption", "text", "sentence", "prompt", "TEXT", "Prompt", "captions")
LIBRARY_KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}

FRAMES = (
    "a photo of {a}", "a photo of {a} {p}", "{a}", "{a} {p}", "{a} and {b}", "{a} next to {b} {p}", "a {s} of {a}",
    "a {s} of {a} {p}", "{a} with {b}", "close-up of {a}", "{a} on top of {b}", "two {n}s {p}", "{a} {v} {p}",
    "a man holding {a} {p}", "a woman with {a}", "people looking at {a} {p}", "{a} is {v} near {b}", "the {n} {p}",
)  # fmt: skip
NOUNS = """airplane apple backpack ball banana barn basket bear bed bee bench bicycle bird boat book bottle bowl boy
bread bridge broom bus butterfly cabin cake camera candle car carpet castle cat chair child church city clock cloud
coat computer cow crab cup dancer deer desk dog doll door dragon dress drum duck eagle egg elephant engine farmer
fence field fish flag flower forest fork fountain fox frog garden gate giraffe girl glass globe goat guitar hammer hat
helicopter horse house island jacket jar kettle key kitchen kite knight ladder lake lamp laptop leaf lemon letter lion
lizard man map market mask mirror monkey moon mountain mouse mug mushroom necklace nest newspaper notebook nurse ocean
onion orange owl painting pan panda park penguin phone piano pig pillow pizza plate pond poster pumpkin queen rabbit
radio ring river road robot rock roof room rope rose sandwich scarf sculpture sheep ship shirt shoe shop singer
skateboard snake sofa soldier spider spoon staircase star statue street suitcase sunflower surfboard sweater sword
table taxi teacher teapot teddy telescope temple tent tiger toaster tomato tower toy tractor train tree truck turtle
umbrella van vase village violin wall watch waterfall whale wheel window wizard wolf woman zebra"""
ADJECTIVES = """red blue green yellow black white brown pink purple orange golden silver old new small large tiny huge
wooden metal glass plastic furry shiny broken colorful vintage modern beautiful strange happy sad sleeping wet dirty
empty striped round tall young"""
PLACES = (
    "on a beach", "in the snow", "in a forest", "at night", "in the city", "on a table", "in a kitchen",
    "on the street", "in a garden", "under a tree", "by a river", "on a mountain", "in the desert", "at sunset",
    "in a museum", "on the grass", "in the rain", "in front of a house", "inside a room", "on a wooden floor",
    "at the market", "in the water", "in space", "on the moon", "in a field of flowers", "near the sea",
    "in a library", "on a boat", "in winter", "in the morning light",
)  # fmt: skip
STYLES = """painting drawing sketch watercolor photograph picture rendering cartoon poster sculpture mosaic
illustration"""
ACTIONS = """standing sitting lying running jumping flying floating burning melting growing moving waiting resting
shining falling"""
NOUNS, ADJECTIVES, STYLES, ACTIONS = (words.split() for words in (NOUNS, ADJECTIVES, STYLES, ACTIONS))


def captions(count: int, seed: int = 0) -> list[str]:
    """The first `count` captions of the stream `seed`: each depends on its index alone."""
    return [_caption(np.random.default_rng([seed, i])) for i in range(count)]


def _caption(rng) -> str:
    pick = lambda words: words[rng.integers(len(words))]

    def thing() -> str:
        words = f"{pick(ADJECTIVES)} {pick(NOUNS)}" if rng.random() < 0.6 else pick(NOUNS)
        article = "the" if rng.random() < 0.15 else "an" if words[0] in "aeiou" else "a"
        return f"{article} {words}"

    words = {"a": thing(), "b": thing(), "p": pick(PLACES), "s": pick(STYLES), "v": pick(ACTIONS), "n": pick(NOUNS)}
    return pick(FRAMES).format(**words)


@cache  # every job of a sweep may ask for them
def _made(make: Callable[[int], list[str]], count: int) -> list[str]:
    return make(count)


class MadeCaptions:
    """The first `count` captions that a function makes, made when they are read: Emojiland's 100,000 take many seconds.

    identity: which captions they are, without making them; None where the function's module names no EDITION.
    """

    def __init__(self, make: Callable[[int], list[str]], count: int):
        self.make, self.count = make, count
        module = getattr(make, "__module__", None)
        edition = getattr(sys.modules.get(module), "EDITION", None)
        self.identity = edition and f"{module} {edition}: {count}"

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        return iter(_made(self.make, self.count))


class Captions:
    """A caption source that can be read again and again, and never lies in memory as a whole.

    source: a text file, one caption a line; a .jsonl, .csv, .tsv or .parquet file; or hf:DATASET[:SPLIT], a data set on
    the Hugging Face hub or in a local folder. column: the one that holds captions, where it is not obvious. count: at
    most so many captions; None for all. Raises UserError where there is no such file.
    """

    def __init__(self, source: str, count: int | None = None, column: str | None = None):
        self.source, self.count, self.column = str(source), count, column
        self.remote = self.source.startswith("hf:")
        self.plain = not self.remote and Path(self.source).suffix.lower() not in LIBRARY_KINDS
        if not self.remote and not Path(self.source).is_file():
            raise UserError(
                f"captions={source} does not exist; give a file with one caption a line, a "
                f"{', '.join(LIBRARY_KINDS)} file, or hf:DATASET."
            )

    def check(self) -> None:
        """Read the first caption. Raises UserError where there is none, no such column, or what is no text."""
        if self.plain:
            with open(self.source, "rb") as file:
                if b"\0" in file.read(2**16):  # which no text has; a bad letter here or there is left to be
                    raise UserError(
                        f"captions={self.source} is no text; give a file with one caption a line, in UTF-8."
                    )
        if next(iter(self), None) is None:
            raise UserError(f"captions={self.source} holds no caption; give a file with at least one.")

    def __iter__(self) -> Iterator[str]:
        return islice(self._lines() if self.plain else self._rows(), self.count)

    def _lines(self) -> Iterator[str]:
        with open(self.source, encoding="utf-8", errors="replace") as file:
            yield from filter(None, map(str.strip, file))

    def _rows(self) -> Iterator[str]:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise UserError(
                f"captions={self.source} needs the package datasets, which is not installed; install it with "
                f"{install('captions')}, or give a text file with one caption a line."
            ) from error
        if self.remote:
            # A split is what follows the last colon; hub ids hold none.
            name, _, split = self.source.removeprefix("hf:").partition(":")
            arguments = {"path": name, "split": split or "train"}
        else:
            kind = LIBRARY_KINDS[Path(self.source).suffix.lower()]
            extra = {"sep": "\t"} if self.source.lower().endswith(".tsv") else {}
            arguments = {"path": kind, "data_files": self.source, "split": "train"} | extra
        try:
            for row in load_dataset(**arguments, streaming=True):
                text = row[self._column(row)]
                for one in text if isinstance(text, list) else [text]:  # COCO has five captions a picture
                    if one and one.strip():
                        yield one.strip()
        except UserError:
            raise
        except Exception as error:  # the library's own errors share no class: network, format, missing splits
            raise UserError(
                f"captions={self.source} cannot be read ({type(error).__name__}: {' '.join(str(error).split())}); "
                "give another data set, or a text file with one caption a line."
            ) from error

    def _column(self, row: dict) -> str:
        columns = [self.column] if self.column else [c for c in COLUMNS if c in row]
        if not columns or columns[0] not in row:
            raise UserError(
                f"captions={self.source} has no column {self.column or 'of captions'}; its columns are: "
                f"{', '.join(row)}; name one with column=NAME."
            )
        return columns[0]
