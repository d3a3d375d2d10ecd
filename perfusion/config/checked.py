"""One check of every key of a command's configuration (schema.py), before anything is loaded: a sentence, or the
configuration with what was plainly meant put right.
"""

import copy
import difflib
import types
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from perfusion.config.groups import Beside
from perfusion.config.schema import COMMANDS
from perfusion.errors import UserError

GIVE = {  # what to write for a key that has no default
    "concept.images": "say what to learn, as in concept=custom concept.images=photos/ concept.super_category=teddy",
    "prompts": "say what to draw, as in prompts='[\"a teddy* on a beach\"]'",
    "concept_file": "name a trained concept, as in concept_file=teddy.safetensors",
    "file": "as in perfusion import file=teddy.ckpt super_category=teddy",
    "super_category": "as in perfusion import file=teddy.ckpt super_category=teddy",
    "model.id": "choose a model, as in model=sd15",
}


def check(command: str, cfg: DictConfig) -> DictConfig:
    """The configuration of `perfusion COMMAND`, with masks=none, one prompt for a list, and the like written out.

    Raises UserError, one sentence, for the first key that is missing, unknown, of another type, out of its range, or
    that refers to what is not there. Files and models are looked at later, by the command.
    """
    schema = COMMANDS[command]
    strict = schema.model_config.get("extra") == "forbid"
    missing = [
        key for key in _missing(OmegaConf.to_container(cfg, resolve=False)) if strict or key in schema.model_fields
    ]
    if missing:
        key = missing[0]
        allowed = _words(_field(schema, key.split("."))[1])
        raise UserError(f"{key} is not given; {GIVE.get(key, f'{allowed} is allowed')}.")
    keys = [key for key in cfg if strict or key in schema.model_fields]
    try:
        plain = {
            k: OmegaConf.to_container(cfg[k], resolve=True) if OmegaConf.is_config(cfg[k]) else cfg[k] for k in keys
        }
    except (OmegaConfBaseException, RecursionError) as error:
        raise UserError(
            f"a value of the configuration cannot be made out ({' '.join(str(error).split())[:200]}); "
            "give one that stands for itself, or quote what is no ${reference}."
        ) from error
    try:
        valid = schema.model_validate(plain)
    except ValidationError as error:
        raise UserError(_sentence(command, schema, plain, error.errors()[0])) from None
    right = copy.deepcopy(cfg)
    for path, value in _changed(plain, valid.model_dump(exclude_unset=True)):
        OmegaConf.update(right, path, value, merge=False, force_add=True)
    return right


def not_taken(command: str, override: str, key_is_there: bool) -> str | None:
    """The sentence for an override, KEY=VALUE, that Hydra did not put into the configuration: because of the value where
    the key is there, else because of the key. None for what is not the command's, as hydra's own.
    """
    key, _, value = override.partition("=")
    keys, info = _field(COMMANDS[command], key.split("."))
    if key_is_there:
        return f"{key}={shown(value)} does not work; {_words(info)} is allowed." if ".".join(keys) == key else None
    group, unknown = _group(info.annotation) if keys else COMMANDS[command], ".".join(keys) != key
    if key.split(".")[0] == "hydra" or (unknown and not group):
        return None
    if unknown and group.model_config["extra"] != "allow":
        return _unknown(command, key, group)
    return f"{key} is in none of the configuration files that are chosen; add it with a plus sign, as in +{override}."


def read_beside(path: Path) -> dict:
    """What a concept.yaml beside pictures says; {} where there is none, or an empty one.

    Raises UserError for one that is not YAML in UTF-8, or says a word in another way than as a text.
    """
    if not path.is_file():
        return {}
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as YAML in UTF-8 ({' '.join(str(error).split())[:150]}); write lines as in "
            "super_category: teddy, or remove the file."
        ) from error
    if plain is None:
        return {}
    if not isinstance(plain, dict):
        raise UserError(
            f"{path} holds {shown(plain, 60)}; write lines as in super_category: teddy, or remove the file."
        )
    try:
        return Beside.model_validate(plain).model_dump(exclude_none=True)
    except ValidationError as error:
        raise UserError(f"{path}: {_sentence(None, Beside, plain, error.errors()[0])}") from None


def _missing(plain, prefix: str = "") -> list[str]:
    """Dotted keys of what is still to be given, ???."""
    if not isinstance(plain, dict):
        return []
    return [key for name, value in plain.items()
            for key in ([prefix + str(name)] if value == "???" else _missing(value, f"{prefix}{name}."))]  # fmt: skip


def _changed(before: dict, after: dict, prefix: str = "") -> list[tuple[str, object]]:
    """(key, value) of what validation wrote anew; all else stays as it was written, references too."""
    changes = []
    for name, value in after.items():
        old = before.get(name)
        if (
            isinstance(value, dict)
            and isinstance(old, dict)
            and all(isinstance(k, str) and "." not in k for k in value)
        ):
            changes += _changed(old, value, f"{prefix}{name}.")
        elif value != old or type(value) is not type(old):
            changes.append((f"{prefix}{name}", value))
    return changes


def _sentence(command: str | None, schema: type[BaseModel], plain: dict, error: dict) -> str:
    keys, info = _field(schema, error["loc"])
    value, key = plain, ".".join(keys)
    for name in keys:
        value = value.get(name) if isinstance(value, dict) else value
    reason = error.get("ctx", {}).get("error")
    if isinstance(reason, UserError):
        return str(reason)
    if error["type"] == "extra_forbidden":
        return _unknown(command, ".".join(map(str, error["loc"])), _group(info.annotation) if info else schema)
    allowed = _words(info)
    if error["type"] == "missing":
        return f"{key} is not given; {allowed} is allowed."
    if _is_listed(info.annotation):
        return f"{key}={shown(value)} is unknown; allowed are: {allowed}."
    quote = ""
    if error["type"] == "string_type" and isinstance(error["input"], (bool, int, float)):
        quoted = f'"{shown(error["input"])}"'
        quote = f"; a text that looks like a number or true is quoted: {quoted}" if command is None else (
            f"; a text that looks like a number or true is quoted twice: '{quoted}'"
        )  # fmt: skip
    return f"{key}={shown(value)} does not work{f' ({reason})' if reason else ''}; {allowed} is allowed{quote}."


def _unknown(command: str, key: str, group: type[BaseModel]) -> str:
    known = list(group.model_fields)
    near = difflib.get_close_matches(key.split(".")[-1], known, n=1)
    return f"{key} is no key of perfusion {command}{f' (did you mean {near[0]}?)' if near else ''}; allowed are: {', '.join(known)}."


def _field(schema: type[BaseModel], loc) -> tuple[list[str], FieldInfo | None]:
    """The keys on the way to a value, as far as they are fields of groups, and the last one's field."""
    keys, info = [], None
    for part in loc:
        if schema is None or part not in schema.model_fields:
            break
        info = schema.model_fields[part]
        keys.append(part)
        schema = _group(info.annotation)
    return keys, info


def _group(annotation) -> type[BaseModel] | None:
    """The group of keys that an annotation is, or may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    groups = (
        [_group(a) for a in get_args(annotation)]
        if get_origin(annotation) in (Union, types.UnionType, Annotated)
        else []
    )
    return next((group for group in groups if group), None)


def _words(kind) -> str:
    """What is allowed, in words: a description's, else the type's."""
    if isinstance(kind, FieldInfo):
        return kind.description or _words(kind.annotation)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        said = [m.description for m in arguments[1:] if isinstance(m, FieldInfo) and m.description]
        return said[-1] if said else _words(arguments[0])
    if origin is Literal:
        return ", ".join(shown(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(a) for a in arguments)
    if group := _group(kind):
        return f"a group of keys ({', '.join(group.model_fields)})"
    return {type(None): "null", bool: "true, false", str: "a text"}.get(kind, "another value")


def _is_listed(kind) -> bool:
    """Whether an annotation allows a few words alone."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _is_listed(arguments[0])
    if origin in (Union, types.UnionType):
        return all(_is_listed(a) for a in arguments)
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
