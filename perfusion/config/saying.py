"""How values and kinds of values are said in a sentence: as they are written on the command line; what is allowed, in words."""

import datetime
import types
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

PLAIN = {
    type(None): "null", bool: "true, false", str: "a text", int: "a whole number", float: "a number", Path: "a path",
    datetime.timedelta: "a time, as in 00:12:00:00 (days, hours, minutes, seconds)", list: "a list", dict: "a group of keys",
}  # fmt: skip


def group_of(annotation) -> type[BaseModel] | None:
    """The group of keys that an annotation is, or may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    groups = (
        [group_of(a) for a in get_args(annotation)]
        if get_origin(annotation) in (Union, types.UnionType, Annotated)
        else []
    )
    return next((group for group in groups if group), None)


def words(kind) -> str:
    """What is allowed, in words: a description's, else the type's."""
    if isinstance(kind, FieldInfo):
        return kind.description or words(kind.annotation)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        said = [m.description for m in arguments[1:] if isinstance(m, FieldInfo) and m.description]
        return said[-1] if said else words(arguments[0])
    if origin is Literal:
        return ", ".join(dict.fromkeys(shown(a) for a in arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(words(a) for a in arguments)
    if group := group_of(kind):
        return f"a group of keys ({', '.join(group.model_fields)})"
    return PLAIN.get(kind) or PLAIN.get(origin, "another value")


def is_listed(kind) -> bool:
    """Whether an annotation allows a few words alone."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return is_listed(arguments[0])
    if origin in (Union, types.UnionType):
        return all(is_listed(a) for a in arguments)
    return origin is Literal or kind in (bool, type(None))


def shown(value, most: int = 100, depth: int = 3) -> str:
    """A value as it is written on the command line, on one line, cut where it is long or deep (YAML's references can say
    a list of lists of ... that nobody could write out)."""
    if isinstance(value, (dict, list, tuple)) and value and not depth:
        text = "..."
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{shown(k)}: {shown(v, depth=depth - 1)}" for k, v in list(value.items())[:20]) + "}"
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(shown(v, depth=depth - 1) for v in value[:20]) + "]"
    else:
        text = (
            {None: "null", True: "true", False: "false"}[value]
            if value is None or isinstance(value, bool)
            else str(value)
        )
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."
