"""Prompt sets are files: Emojiland's YAML, DreamBench's prompts_and_classes.txt, CustomConcept101's prompts/*.txt."""

import ast
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from perfusion.errors import UserError, loading

Facts = dict[str, Collection[str]]  # {fact: words} that prompts may name


@dataclass(frozen=True)
class Prompt:
    """{} in `text` is the concept's word; `facts` is what evaluation.reads should find besides the object."""

    text: str
    facts: dict[str, str] = field(default_factory=dict)

    def with_word(self, word: str) -> str:
        return self.text.replace("{}", word)

    def without_word(self) -> str:
        """The prompt with the placeholder deleted, as Textual Inversion's text score has it."""
        return " ".join(self.text.replace("{}", " ").split())


def read_splits(path: str | Path, facts: Facts | None = None) -> dict[str, list[Prompt]]:
    """{split: prompts} of a file in any of the three formats, which is told from its name and content.

    Emojiland's splits are dev and final, DreamBench's object and live (subjects), CustomConcept101's one is called all.
    facts: those allowed; None where they are not asked.
    Raises UserError for a missing file, one of no known format, and prompts without exactly one place for a word.
    """
    path = Path(path or "null")
    if not path.is_file():
        raise UserError(
            f"evaluation.prompts={path} does not exist; give Emojiland's data/prompts/emojiland.yaml, a DreamBench "
            "prompts_and_classes.txt or a CustomConcept101 prompts/*.txt."
        )
    if path.suffix == ".json":
        raise UserError(
            f"evaluation.prompts={path} lists concepts, as CustomConcept101's dataset.json does; give the file of prompts "
            "that its prompt_filename names, prompts/*.txt."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"evaluation.prompts={path} is not a text in UTF-8; save it as one.") from error
    if path.suffix in (".yaml", ".yml"):
        splits = _yaml(path, text)
        _check_facts(path, splits, facts)
    elif "prompt_list" in text:
        splits = _dreambench(path, text)
    else:
        splits = {"all": [Prompt(line.strip().replace("{0}", "{}")) for line in text.splitlines() if line.strip()]}
    for name, prompts in splits.items():
        if not prompts:
            raise UserError(f"evaluation.prompts={path} has no prompts in its split {name}; write one a line.")
        for prompt in prompts:
            if len(re.findall(r"\{.*?\}", prompt.text)) != 1 or "{}" not in prompt.text:
                raise UserError(
                    f'evaluation.prompts={path} has the prompt "{prompt.text}"; exactly one {{}} for the one '
                    "concept's word is allowed: leave out prompts of several concepts."
                )
    return splits


def read_prompts(path: str | Path, split: str | None = None, facts: Facts | None = None) -> list[Prompt]:
    """The prompts of one split, the file's first for None. Raises UserError naming the splits it has."""
    splits = read_splits(path, facts)
    if split is not None and split not in splits:
        raise UserError(f"evaluation.split={split} is not in {path}; allowed are: {', '.join(splits)}.")
    return splits[split or next(iter(splits))]


def _yaml(path: Path, text: str) -> dict[str, list[Prompt]]:
    wrong, way_out = (
        f"evaluation.prompts={path} is not a prompt file",
        "write each split as a list of {text: ..., FACT: ...}",
    )
    with loading(wrong, way_out):
        content = OmegaConf.to_container(OmegaConf.create(text))
        splits = {
            name: [Prompt(str(p["text"]), {k: str(v) for k, v in p.items() if k != "text"}) for p in prompts]
            for name, prompts in content.items()
        }
    if not splits:
        raise UserError(f"evaluation.prompts={path} has no prompts; {way_out}.")
    return splits


def _check_facts(path: Path, splits: dict[str, list[Prompt]], facts: Facts | None) -> None:
    if facts is None:
        return
    for prompt in (p for prompts in splits.values() for p in prompts):
        for fact, value in prompt.facts.items():
            if value not in facts.get(fact, ()):
                raise UserError(
                    f'evaluation.prompts={path} says {fact}: {value} of "{prompt.text}"; allowed are '
                    f"{fact + ': ' + ', '.join(facts[fact]) if fact in facts else 'the facts ' + ', '.join(facts)}."
                )


def _dreambench(path: Path, text: str) -> dict[str, list[Prompt]]:
    """Lists of 'a {0} {1} in the jungle'.format(unique_token, class_token): here one word stands for both."""
    splits = {}
    for name, body in re.findall(r"(\w+)(?: Subject)? Prompts\s+prompt_list = \[(.*?)\]", text, flags=re.DOTALL):
        literals = re.findall(r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")\s*\.format", body)
        with loading(
            f"evaluation.prompts={path} has a prompt that is no Python text", "fetch it from google/dreambooth again"
        ):
            splits[name.lower()] = [Prompt(ast.literal_eval(s).replace("{0} {1}", "{}")) for s in literals]
    if not splits:
        raise UserError(
            f"evaluation.prompts={path} names prompt_list but has no list of prompts as DreamBench's "
            "prompts_and_classes.txt has; fetch it from google/dreambooth again."
        )
    return splits
