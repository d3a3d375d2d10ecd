"""What load_concepts takes: a concept or several, in memory, as files or on the hub, by their own words or by others."""

import os
from collections.abc import Sequence

from perfusion.errors import UserError
from perfusion.method.concept import Concept
from perfusion.method.gates import is_list

Source = str | os.PathLike | Concept  # a file, an address on the hub, or a concept in memory


def by_word(concepts: dict[str, Source] | Source | Sequence[Source], **hub) -> dict[str, Concept]:
    """{word: concept}. hub: options of the hub. Raises UserError, before any file is read, for what is none of these."""
    if not concepts:
        raise UserError('concepts={} is empty; give at least one, as {"teddy*": "teddy.safetensors"}.')
    named = isinstance(concepts, dict)
    given: list = list(concepts.items() if named else enumerate(concepts if is_list(concepts) else [concepts]))  # type: ignore
    for name, source in given:
        if named and not isinstance(name, str):
            raise UserError(
                f'concepts names the word {name!r}; a word must be text, as in {{"teddy*": "teddy.safetensors"}}.'
            )
        if not isinstance(source, Source):
            where = "concepts" if source is concepts else f"concepts[{name!r}]"
            raise UserError(
                f'{where}={source!r:.80} is no concept; allowed are a file, "user/repo" on the hub, or a Concept.'
            )
    loaded = [(name, s if isinstance(s, Concept) else Concept.load(s, **hub)) for name, s in given]
    if named:
        return dict(loaded)
    words = [concept.trigger for _, concept in loaded]
    if len(set(words)) < len(words):
        raise UserError(
            f"concepts have the words {words}, some of them twice; give each its own, as in "
            '{"teddy*": "teddy.safetensors"}.'
        )
    return {concept.trigger: concept for _, concept in loaded}
