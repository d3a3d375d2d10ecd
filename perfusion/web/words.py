"""A prompt as the page shows it: which words are concepts, and what to do about those that look like one and are not."""

import difflib
import re

from perfusion.method.text import written

Spans = list[tuple[str, str | None]]


def spans(prompt: str, words: list[str]) -> Spans:
    """The prompt cut into (text, concept's word or None): highlighted is what drawing will take for the concept."""
    matches = sorted((m.start(), m.end(), word) for word in words for m in written(word).finditer(prompt))
    cut, at = [], 0
    for start, end, word in matches:
        if start < at:  # within another
            continue
        cut += [(prompt[at:start], None)] * (start > at) + [(prompt[start:end], word)]
        at = end
    return cut + [(prompt[at:], None)] * (at < len(prompt))


def plain(text: str) -> str:
    """Text in Markdown as it is, the asterisks of concepts' words and all."""
    return re.sub(r"([^\w\s]|_)", r"\\\1", text)


def bold(word: str) -> str:
    """A concept's word in Markdown."""
    return f"**{plain(word)}**"


def hints(prompt: str, supers: dict[str, str], known: list[str]) -> list[str]:
    """Sentences about words that show no concept. supers: {word in play: its super-category's word}; known: all words."""
    said, recognised = [], {word for _, word in spans(prompt, list(supers)) if word}
    plain = "".join(text for text, word in spans(prompt, list(supers)) if not word)
    lost = []
    for token in dict.fromkeys(re.findall(r"[^\s,.;:!?]+", plain)):
        if token.lower() in (w.lower() for w in known):
            lost.append(f'"{token}" is not in play: choose it under Concepts, and it is shown.')
        elif "*" in token:
            near = difflib.get_close_matches(token.lower(), known, n=1, cutoff=0.5)
            lost.append(f'"{token}" is no concept\'s word' + (f'; did you mean "{near[0]}"?' if near else "."))
    said += lost
    for word, category in supers.items():
        if word in recognised:
            continue
        if written(category).search(plain):
            said.append(f'"{category}" shows the base model\'s {category}; write "{word}" for the concept.')
        elif not lost:
            said.append(f'"{word}" is not in the prompt, so it is not shown.')
    return said
