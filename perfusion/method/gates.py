"""How loaded concepts' gates are set: beta, tau and the lock, for all, by concept, by prompt or by image; and whether they can
tell the concepts apart."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from perfusion.errors import UserError
from perfusion.method.concept import Concept
from perfusion.method.edit import overlap


def is_list(value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def as_python(value):
    """Numbers, arrays and tensors of numpy and torch as numbers and lists of Python's own; all else as it is."""
    if isinstance(value, dict):
        return {name: as_python(one) for name, one in value.items()}
    if is_list(value):
        return [as_python(one) for one in value]
    return value.tolist() if hasattr(value, "tolist") else value


def check_gate(concepts: dict[str, Concept], **settings) -> None:
    """Raises UserError for settings that `LoadedConcepts.set_gate` would not take with these concepts."""
    for name, value in settings.items():
        if name not in ("beta", "tau", "lock"):
            raise UserError(f"{name}={value} is unknown; allowed are: beta, tau, lock.")
        for one in value if is_list(value) else [value]:
            _check_lock(concepts, one) if name == "lock" else numbers(concepts, name, one)


def _check_lock(concepts: dict[str, Concept], lock: str | None) -> None:
    locks = [c.lock for c in concepts.values()]
    allowed = sorted({"global", *(locks[:1] if len(set(locks)) == 1 else [])})
    if lock is not None and lock not in allowed:
        raise UserError(
            f"lock={lock} is not to be had with {list(concepts)}, trained with {locks}; allowed are None and {allowed}."
        )


def numbers(concepts: dict[str, Concept], name: str, value) -> list[float]:
    """One image's beta or tau as a number for every concept; None stands for the concepts' own."""
    own = {trigger: getattr(c, name) for trigger, c in concepts.items()}
    named = value if isinstance(value, dict) else {} if value is None else dict.fromkeys(own, value)
    for trigger, number in named.items():
        if trigger not in own:
            raise UserError(f'{name} names the concept "{trigger}", which is not loaded; loaded are: {", ".join(own)}.')
        finite = isinstance(number, (int, float)) and abs(number) <= sys.float_info.max  # nan is not
        if isinstance(number, bool) or not finite or (name == "tau" and number <= 0):
            raise UserError(
                f"{name}={number} of {trigger} must be a finite {'positive number' if name == 'tau' else 'number'}."
            )
    return [float(x) for x in (own | named).values()]


def per_image(name: str, value, prompts: int, images: int) -> list:
    """A setting as one value per image: [prompts * images], the images of one prompt side by side.

    Raises UserError for a list of another length than one per prompt or per image.
    """
    if not is_list(value):
        return [value] * (prompts * images)
    if len(value) == prompts * images:
        return list(value)
    if len(value) == prompts:
        return [v for v in value for _ in range(images)]
    raise UserError(
        f"{name} is a list of {len(value)} for {prompts} prompt(s) with {images} image(s) each; allowed are "
        f"one value, or a list of {prompts} or {prompts * images}."
    )


def check_distinct(words: list[str], i_stars: Tensor, c_inv_i_stars: Tensor, always_on: bool) -> None:
    """Raises UserError where the gates would not tell the concepts of i* [J, d] and C^-1 i* [J, d] apart."""
    # Two at a time, since a prompt holds few of them: more concepts than i* has numbers may be loaded.
    G = overlap(i_stars, c_inv_i_stars).double()
    cosine = (G * G.T).clamp(min=0).sqrt().fill_diagonal_(0)  # in the metric of C^-1
    if cosine.max() > 1 - 2e-5:
        alike = [words[i] for i in divmod(int(cosine.argmax()), len(G))]
        raise UserError(
            f"concepts {alike} have all but the same i* (cosine {cosine.max():.6f}, allowed 0.99998), so they "
            "cannot be told apart in one prompt; load one of them, or them one at a time."
        )
    if always_on and (condition := torch.linalg.cond(G)) > 1e5:
        raise UserError(
            f"{len(G)} concepts act on every prompt under always_on=True, and their i* depend on each other "
            f"(condition {condition:.1e}, allowed 1e5); load fewer, or leave always_on=False."
        )
