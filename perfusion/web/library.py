"""The concepts that the page may use: files of one folder, each under a word of its own."""

import re
from dataclasses import replace
from pathlib import Path

from perfusion.errors import UserError
from perfusion.method.concept import Concept
from perfusion.method.hub import fetch
from perfusion.method.text import add_placeholders

LARGEST = 16 * 2**20  # bytes of a concept file: SDXL's are below 1 MB
MOST = 500  # files in the folder


class Library:
    """{word: Concept} of a folder's .safetensors files; new ones are copied into it. No other file is ever read.

    Words, not paths, are what the page sends: a word that is not in the library is refused.
    """

    def __init__(self, folder: Path):
        self.folder, self.skipped = Path(folder), []
        self._concepts: dict[str, Concept] = {}
        self._files: dict[str, Path] = {}
        self._tokenizer, self._base = None, ("", "")

    def open(self, tokenizer, base_id: str, base_hash: str) -> None:
        """Read the folder for a base model. What cannot be used with it is left out, and says why in `skipped`."""
        self._tokenizer, self._base = tokenizer, (base_id, base_hash)
        for path in sorted(self.folder.glob("*.safetensors"))[:MOST]:
            try:
                concept = self._read(path)
                word = self.free(concept.trigger)
                self._concepts[word], self._files[word] = concept, path
            except UserError as error:
                self.skipped.append(f"{path.name} is left out: {error}")

    def words(self) -> list[str]:
        return list(self._concepts)

    def __getitem__(self, word: str) -> Concept:
        """Raises UserError for a word that is not here."""
        if word not in self._concepts:
            raise UserError(f'there is no concept "{word}" here; there are: {", ".join(self._concepts) or "none yet"}.')
        return self._concepts[word]

    def file(self, word: str) -> Path:
        """Raises UserError for a word that is not here."""
        return self[word] and self._files[word]

    def add(self, path: str | Path) -> str:
        """Copy a concept file into the folder; returns its word, the old one where the very same concept is here.

        Raises UserError for a file that is no concept, is of another base model, or is too large.
        """
        return self.take(self._read(Path(path)))

    def fetch(self, address: str) -> str:
        """`add` of hf://user/repo[@revision][/file]. Raises UserError for anything else: no path of this machine is read."""
        if not address.strip().startswith("hf:"):
            raise UserError(
                f"{address} is not an address on the hub; allowed is hf://user/repo, hf://user/repo@revision/file."
            )
        return self.take(self._read(fetch(address.strip(), largest=LARGEST)))

    def take(self, concept: Concept) -> str:
        """Save a concept into the folder, under its own word or, where that is taken, one like it; returns the word."""
        for word, known in self._concepts.items():
            if (
                concept.trigger == known.trigger
                and concept.i_star.equal(known.i_star)
                and concept.embedding.equal(known.embedding)
            ):
                return word
        if len(self._concepts) >= MOST:
            raise UserError(
                f"there are {MOST} concepts in {self.folder.name}, as many as are allowed; remove some files there."
            )
        word = self.free(concept.trigger)
        name = re.sub(r"[^a-z0-9]+", "", word.lower()) or "concept"
        path = next(
            p for n in range(MOST + 1) if not (p := self.folder / f"{name}{f'-{n}' if n else ''}.safetensors").exists()
        )
        concept = replace(concept, trigger=word)
        concept.save(path)
        self._concepts[word], self._files[word] = Concept.load(path), path  # as the file has it: in float16's values
        return word

    def free(self, word: str) -> str:
        """The word itself, or where it is taken the next of teddy2*, teddy3*, ... Raises UserError for no possible word."""
        taken = {w.lower() for w in self._concepts}
        stem, star = (word[:-1], "*") if word.endswith("*") else (word, "")
        next_word = next(
            w for n in range(1, MOST + 2) if (w := f"{stem}{n if n > 1 else ''}{star}").lower() not in taken
        )
        add_placeholders(self._tokenizer, [next_word])
        return next_word

    def _read(self, path: Path) -> Concept:
        if path.exists() and path.stat().st_size > LARGEST:
            raise UserError(f"{path.name} has {path.stat().st_size} bytes; a concept file has at most {LARGEST}.")
        concept = Concept.load(path)
        concept.check_base(*self._base)
        return concept
