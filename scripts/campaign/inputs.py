"""Values of configuration keys that do not fit, and extremes that do: python scripts/campaign/inputs.py --inputs 3000

Hypothesis draws a command, one of its keys (perfusion/config/schema.py names them) and a value: of any type, or at and beside
the ends of what the key allows. Each must be refused in one sentence that names the key (UserError), or pass, and then pass
again unchanged. With --runs N, N of the values that pass are given to the command itself, on the tests' small world: it must
end with exit code 0, or 2 and one sentence. `tracebacks` counts any other end, and lists them.
"""

import argparse
import copy
import io
import json
import math
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Annotated, get_args, get_origin

import hydra
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic.fields import FieldInfo

from perfusion.config import CONF, check
from perfusion.config.checked import _group
from perfusion.config.schema import COMMANDS
from perfusion.errors import UserError

GIVEN = {
    "generate": ["prompts=a"], "evaluate": ["concept_file=a"], "import": ["file=a", "super_category=b"],
    "collect": ["experiment=key_locking"], "report": ["experiment=key_locking"],
}  # fmt: skip
SHOWN = 200  # letters of a value, in the list of what failed


def keys_of(command: str) -> dict[str, FieldInfo]:
    """{dotted key: its field} of everything that a command may be given."""
    return _leaves(COMMANDS[command])


def _leaves(group, prefix: str = "", depth: int = 0) -> dict[str, FieldInfo]:
    found = {}
    for name, info in group.model_fields.items():
        inner = _group(info.annotation)
        if inner and depth < 2:
            found |= _leaves(inner, f"{prefix}{name}.", depth + 1)
        elif not inner:
            found[prefix + name] = info
    return found


def ends(kind) -> list:
    """Values at and just beyond the ends of what a type allows; [] where it has none."""
    bounds = [b for m in getattr(kind, "metadata", ()) for b in (getattr(m, "ge", None), getattr(m, "le", None)) if b is not None]
    inner = [kind.annotation] if isinstance(kind, FieldInfo) else get_args(kind)
    if get_origin(kind) is Annotated:
        bounds += [b for m in kind.__metadata__ if isinstance(m, FieldInfo) for b in ends(m)]
    found = [x for b in bounds for x in (b, b - 1, b + 1, float(b), math.nextafter(b, -math.inf), math.nextafter(b, math.inf))]
    return found + [x for a in inner if not isinstance(a, str) for x in ends(a)]


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 3), st.floats(), st.text(max_size=30),
    st.sampled_from([
        "none", "null", "true", "5", "1e3", "nan", "", " ", "???", "${nope}", "${seed}", "${oc.env:NOPE}", "a {} b", "{", "{}", "{0}",
        "$x_^$", "a\nb", "a\0b", "x" * 5000, "/", "/proc/x", "../..", "hf:", "\U0001f9f8", "\u202e", 10**30, -(10**30),
        2**31, 2**32, 2**63, 1e308, -0.0, math.inf, -math.inf, math.nan,
    ]),
)  # fmt: skip
values = st.recursive(scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), x, max_size=3), max_leaves=4)


@st.composite
def inputs(draw) -> tuple[str, str, object]:
    """A command, a key of it and a value."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    key = draw(st.sampled_from(sorted(keys_of(command))))
    at_the_end = ends(keys_of(command)[key])
    return command, key, draw(values | st.sampled_from(at_the_end) if at_the_end else values)


@cache
def composed(command: str):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(command, GIVEN.get(command, []))


def try_one(command: str, key: str, value) -> bool:
    """Whether the check takes the value. Raises AssertionError for a bad sentence, and what the check itself should not."""
    cfg = copy.deepcopy(composed(command))
    try:
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    except Exception:  # what OmegaConf cannot hold, no command line or file can say
        return False
    try:
        checked = check(command, cfg)
    except UserError as error:
        said = str(error)
        assert "\n" not in said and said.endswith(".") and len(said) < 2000, f"not one sentence: {said}"
        assert key.split(".")[-1] in said or "cannot be made out" in said, f"does not name {key}: {said}"
        return False
    assert check(command, checked) == checked, "another check changes it again"
    return True


def bad_inputs(count: int = 300, seed: int = 0, accepted: Callable[[str, str, object], None] | None = None) -> dict:
    """Try `count` inputs; returns the counts of them, and of those refused and accepted, and the tracebacks, shortened.

    accepted: called with each that passes. The same count and seed try the same.
    """
    found = {"bad_inputs": 0, "refused": 0, "accepted": 0, "tracebacks": []}
    with_all = settings(
        max_examples=count, database=None, deadline=None, derandomize=False, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    @seeded(seed)
    @with_all
    @given(inputs())
    def run(drawn):
        command, key, value = drawn
        if found["bad_inputs"] >= count:
            return
        found["bad_inputs"] += 1
        try:
            taken = try_one(command, key, value)
            found["accepted" if taken else "refused"] += 1
            if taken and accepted:
                accepted(command, key, value)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            found["tracebacks"].append(f"{command} {key}={value!r:.{SHOWN}}: {type(error).__name__} at {where}: {error!s:.{SHOWN}}")

    run()
    return found
