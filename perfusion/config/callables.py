"""Keys that another library's class takes beside those that a group names: held against its signature and annotations."""

import inspect
import pathlib
import types
from collections.abc import Collection
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from perfusion.config.saying import shown, words
from perfusion.errors import UserError, first_sentence

STRICT = ConfigDict(strict=True)
FINITE = Annotated[float, Field(allow_inf_nan=False, description="a number")]
WRITTEN = (bool, int, str, type(None), list, dict, pathlib.Path, FINITE, Any)


def check_arguments(group: str, given: dict[str, Any], call, ours: Collection[str] = ()) -> None:
    """Raises UserError, one sentence, for the first key that `call` does not take, or whose value is of another type.

    group: the keys' own, as `trainer`; ours: arguments that perfusion sets itself, so that no key may.
    """
    takes = inspect.signature(call).parameters
    known = [n for n, p in takes.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and n not in ours]
    others = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    for name, value in given.items():
        key, allowed = f"{group}.{name}", f"allowed are: {', '.join(known)}."
        if name in ours:
            raise UserError(f"{key} is set by perfusion train itself; {allowed}")
        if name not in known:
            if others and not name.startswith("_"):  # as hydra's own _partial_ does
                continue
            raise UserError(f"{key} is no key of the {group.partition('.')[0]}; {allowed}")
        kind = written(takes[name].annotation)
        try:
            TypeAdapter(kind, config=STRICT).validate_python(value)
        except ValidationError:
            raise UserError(f"{key}={shown(value)} does not work; {words(kind)} is allowed.") from None


def check_logger(group: str, given, ready: dict[str, Collection[str]]) -> None:
    """Raises UserError, one sentence, where the keys `given` are not those of a logger of Lightning.

    ready: {class: keys of it whose values are checked already}; nothing is imported for those alone.
    """
    target = given.get("_target_") if isinstance(given, dict) else None
    if not isinstance(target, str):
        raise UserError(
            f"{group}={shown(given)} does not work; keys of one logger are allowed, of which _target_ names its class, "
            f"as in {next(iter(ready))}; logger=csv, wandb or none is a choice that is ready."
        )
    if {"_target_", *ready.get(target, ())} >= given.keys():
        return
    import hydra.utils
    from pytorch_lightning.loggers import Logger

    try:
        kind = hydra.utils.get_class(target)
        wrong = None if issubclass(kind, Logger) else "it is no logger"
    except Exception as error:  # whatever the import of a module raises
        wrong = first_sentence(error)
    if wrong:
        raise UserError(
            f"{group}._target_={shown(target)} does not work ({wrong[:200]}); a class of pytorch_lightning.loggers is "
            f"allowed, such as {next(iter(ready))}."
        )
    own = {k: v for k, v in given.items() if k != "_target_" and (k, v) != ("save_dir", None)}  # null: the run's folder
    check_arguments(group, own, kind)


def written(annotation):
    """What of an annotation a configuration can hold: objects are left out, numbers are finite; anything where nothing is said."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):  # a text: names that are its module's own
        return Any
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for one in get_args(annotation) if (kind := written(one)) is not None]
        kinds = tuple(kind for kind in kinds if kind is not int or FINITE not in kinds)  # a number may be a whole one
        return Union[kinds] if kinds else None  # noqa: UP007 of as many as there are
    kind = FINITE if annotation is float else annotation
    return kind if kind in WRITTEN or get_origin(kind) in (Literal, list, dict) else None
