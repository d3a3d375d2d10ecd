"""One check of every key of a command's configuration (schema.py), before anything is loaded: a sentence, or the
configuration with what was plainly meant put right.
"""

import copy
import difflib
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from perfusion.config.groups import Beside
from perfusion.config.saying import group_of, is_listed, shown, words
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
        allowed = words(_field(schema, key.split("."))[1])
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
        return f"{key}={shown(value)} does not work; {words(info)} is allowed." if ".".join(keys) == key else None
    group, unknown = group_of(info.annotation) if keys else COMMANDS[command], ".".join(keys) != key
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
        return _unknown(command, ".".join(map(str, error["loc"])), group_of(info.annotation) if info else schema)
    allowed = words(info)
    if error["type"] == "missing":
        return f"{key} is not given; {allowed} is allowed."
    if is_listed(info.annotation):
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
        schema = group_of(info.annotation)
    return keys, info
