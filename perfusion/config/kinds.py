"""What a value may be: numbers in a range, texts, paths, words; each with what a sentence about another says is allowed."""

import math
import os.path
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field


def whole(low: int, high: int = 2**31 - 1, **more):
    """A whole number; true and 1.0 are none."""
    said = f"of at least {low}" if high == 2**31 - 1 else f"from {low} to {high}"
    return Annotated[int, Field(strict=True, ge=low, le=high, description=f"a whole number {said}", **more)]


def number(low: float, high: float):
    """A finite number, kept as it is written: 1 stays 1, on which the keys of finished jobs depend."""
    integer = Annotated[int, Field(strict=True, ge=math.ceil(low), le=math.floor(high))]
    kind = integer | Annotated[float, Field(strict=True, ge=low, le=high, allow_inf_nan=False)]
    return Annotated[kind, Field(description=f"a number from {low:g} to {high:g}")]


def _encodable(text: str) -> str:
    text.encode()  # UnicodeEncodeError, a ValueError, for what no file could hold
    if "\0" in text:
        raise ValueError("it holds a zero byte")
    return text


def _path(text: str) -> str:
    if not text.strip() or len(text) > 4000 or any(len(part.encode()) > 240 for part in text.split("/")):
        raise ValueError("it is empty, or too long for a file's name")
    return os.path.expanduser(text)  # shells leave the ~ of KEY=~/VALUE as it is


def _template(text: str) -> str:
    if text.count("{}") != 1 or re.search("[{}]", text.replace("{}", "")):
        raise ValueError("each prompt needs exactly one {}, the place of the word, and no other brace")
    return text


def _one_word(text: str) -> str:
    if not any(c.isprintable() and not c.isspace() for c in text) or len(text) > 100:
        raise ValueError("it has no letter that can be seen, or more than 100")
    return text.strip()


def none(value):
    """masks=none and masks=false are plainly meant as null."""
    return None if value is False or (isinstance(value, str) and value.lower() in ("none", "null", "")) else value


def _listed(value):
    """One value where a list of them is wanted."""
    return value if isinstance(value, (list, dict, type(None))) else [value]


def _no_reference(text: str) -> str:
    if "${" in text:
        raise ValueError("it refers to another value")
    return text


Text = Annotated[str, AfterValidator(_encodable), Field(description="a text")]
Path = Annotated[str, AfterValidator(_encodable), AfterValidator(_path), Field(description="a path")]
Source = Annotated[Text, AfterValidator(os.path.expanduser)]  # a path, or an address such as hf:NAME
Word = Annotated[str, AfterValidator(_encodable), AfterValidator(_one_word), Field(description="a word")]
Plain = Annotated[Word, AfterValidator(_no_reference)]
Template = Annotated[str, AfterValidator(_encodable), AfterValidator(_template)]
Device = Annotated[str, Field(pattern=r"^[a-z]{2,12}(:\d{1,3})?$", description="cpu, cuda, cuda:1, mps or the like")]
Dotted = Annotated[
    str,
    Field(pattern=r"^\w+(\.\w+)+$", description="a class, as in perfusion.baselines.custom_diffusion.CustomDiffusion"),
]
Flag = Annotated[bool, Field(strict=True)]
Seed = whole(0, 2**32 - 1)
Beta, Tau = number(-100, 100), number(1e-4, 100)
Lock = Literal["global", "local", "trained"]
Tokens = Literal["valid", "content", "all"]
several = lambda kind, said: Annotated[list[kind], BeforeValidator(_listed), Field(min_length=1, description=said)]
Strengths = several(number(0, 100), "a list of at least one number from 0 to 100, as in [0.5,1.0],") | None


def per_concept(kind):
    return kind | Annotated[dict[Word, kind], Field(description="{teddy*: NUMBER} for each concept")] | None
