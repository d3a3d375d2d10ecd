"""Values of configuration keys that do not fit, and extremes that do, drawn by hypothesis.

A command, one of its keys (perfusion/config/schema.py names them) and a value: of any type, or at and beside the ends of what
the key allows. Each must be refused in one sentence that names the key (UserError), or pass, and then pass again unchanged.
`extras` draws keys that a plus sign adds, of Lightning's trainer and logger, and Hydra's own. `bad_inputs` tries so many on the check alone, milliseconds each; `overrides` gives them to the command line.
"""

import copy
import inspect
import math
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic.fields import FieldInfo
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger

from perfusion.config import CONF, check
from perfusion.config.callables import written as configurable
from perfusion.config.saying import group_of
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
    leaves = {}
    for name, info in group.model_fields.items():
        inner = group_of(info.annotation)
        if inner and depth < 2:
            leaves |= _leaves(inner, f"{prefix}{name}.", depth + 1)
        elif not inner:
            leaves[prefix + name] = info
    return leaves


def ends(kind) -> list:
    """Values at and just beyond the ends of what a type allows, and all of few; [] where it has none."""
    bounds = [
        b
        for m in getattr(kind, "metadata", ())
        for b in (getattr(m, "ge", None), getattr(m, "le", None))
        if b is not None
    ]
    inner = [kind.annotation] if isinstance(kind, FieldInfo) else get_args(kind)
    if get_origin(kind) is Annotated:
        bounds += [b for m in kind.__metadata__ if isinstance(m, FieldInfo) for b in ends(m)]
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    few = {bool: [True, False], type(None): [None]}.get(kind, []) if isinstance(kind, type) else []
    own = few + [
        x
        for b in bounds
        for x in (b, b - 1, b + 1, float(b), math.nextafter(b, -math.inf), math.nextafter(b, math.inf))
    ]
    return own + [x for a in inner if not isinstance(a, str) for x in ends(a)]


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 3), st.floats(), st.text(max_size=30),
    st.sampled_from([
        "none", "null", "true", "5", "1e3", "nan", "", " ", "???", "${nope}", "${seed}", "${oc.env:NOPE}", "a {} b", "{", "{}", "{0}",
        "$x_^$", "a\nb", "a\0b", "x" * 5000, "/", "/proc/x", "../..", "hf:", "\U0001f9f8", "\u202e", 10**30, -(10**30),
        2**31, 2**32, 2**63, 1e308, -0.0, math.inf, -math.inf, math.nan,
    ]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), x, max_size=3),
    max_leaves=4,
)


@st.composite
def inputs(draw) -> tuple[str, str, object]:
    """A command, a key of it and a value."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    key = draw(st.sampled_from(sorted(keys_of(command))))
    at_the_end = ends(keys_of(command)[key])
    return command, key, draw(st.sampled_from(at_the_end) if at_the_end and draw(st.booleans()) else values)


FOLDERS = (
    ".",
    "a",
    "a/b",
    ".hydra",
    "${now:%Y}",
    "s/${seed}",
    "${hydra.job.num}",
    "${hydra.job.override_dirname}",
    "teddy.safetensors",
)
OF_HYDRA = {  # its own keys, with values that mean something to them
    "hydra.verbose": (True, False, "perfusion", ["hydra", "perfusion"]),
    "hydra.run.dir": FOLDERS,
    "hydra.sweep.dir": FOLDERS,
    "hydra.sweep.subdir": FOLDERS,
    "hydra.output_subdir": (None, *FOLDERS),
    "hydra.mode": ("RUN", "MULTIRUN"),
    "hydra.searchpath": ([], ["a"], ["file://a", "pkg://perfusion"]),
    "hydra.job.name": ("a", "train"),
    "hydra.job.chdir": (None, True, False),
    "hydra.job.env_set": ({}, {"A": "b"}, {"A": 5}),
    "hydra.job_logging.root.level": ("DEBUG", "INFO", 10),
    "hydra.launcher.n_jobs": (1, 2),
    "hydra/launcher": ("basic", "joblib", "submitit_local", "ray"),
    "hydra/sweeper": ("basic", "optuna"),
}
OF_LIGHTNING = (
    "simple", "advanced", "warn", "min_size", "norm", "value", "cpu", "gpu", "tpu", "auto", "ddp", "ddp_spawn", "fsdp", "16-mixed",
    "00:00:00:01", 1, 2, 0.5,
)  # fmt: skip


@cache
def extra_keys(command: str) -> dict[str, FieldInfo]:
    """{dotted key: its field} of what a command takes beside `keys_of`."""
    keys = {key: FieldInfo(annotation=Any) for key in OF_HYDRA}
    for group, call in {"trainer": Trainer, "logger": CSVLogger}.items():
        if group in COMMANDS[command].model_fields:
            taken = inspect.signature(call).parameters
            keys |= {f"{group}.{n}": FieldInfo(annotation=configurable(p.annotation) or Any) for n, p in taken.items()}
    return keys


@st.composite
def extras(draw) -> tuple[str, str, object]:
    """As `inputs`, of `extra_keys`."""
    command = draw(st.sampled_from(["covariance", "evaluate", "generate", "train"]))  # which end well beside it
    key = draw(st.sampled_from(sorted(extra_keys(command))))
    fit = [*ends(extra_keys(command)[key]), *OF_HYDRA.get(key, OF_LIGHTNING)]
    return command, key, draw(st.sampled_from(fit) if draw(st.integers(0, 3)) else values)


@cache
def composed(command: str):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(command, GIVEN.get(command, []))


def configured(command: str, *overrides: str):
    """The configuration that the command line makes of these overrides of values, without composing it anew."""
    cfg = copy.deepcopy(composed(command))
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=False, force_add=True)
    return cfg


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
        # logger.csv is at fault where logger.csv.project is asked of another logger.
        above, _, last = key.rpartition(".")
        named = last in said or "." in above and above in said
        assert named or "cannot be made out" in said, f"does not name {key}: {said}"
        return False
    assert check(command, checked) == checked, "another check changes it again"
    return True


def bad_inputs(
    count: int = 300, seed: int = 0, accepted: Callable[[str, str, object], None] | None = None, drawn_by=inputs
) -> dict:
    """Try `count` inputs of `drawn_by`; returns the counts of them, and of those refused and accepted, and the tracebacks, shortened.

    accepted: called with each that passes, or that is Hydra's to check. The same count and seed try the same.
    """
    counts = {"bad_inputs": 0, "refused": 0, "accepted": 0, "tracebacks": []}
    with_all = settings(
        max_examples=count, database=None, deadline=None, derandomize=False, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    @seeded(seed)
    @with_all
    @given(drawn_by())
    def run(drawn):
        command, key, value = drawn
        if counts["bad_inputs"] >= count:
            return
        counts["bad_inputs"] += 1
        try:
            taken = key.startswith("hydra") or try_one(command, key, value)
            counts["accepted" if taken else "refused"] += 1
            if taken and accepted:
                accepted(command, key, value)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            counts["tracebacks"].append(
                f"{command} {key}={value!r:.{SHOWN}}: {type(error).__name__} at {where}: {error!s:.{SHOWN}}"
            )

    run()
    return counts


# -- on the command line ----------------------------------------------------------------------------------------------
BESIDE = {  # what each command is given beside the value: with it, it would end well, and soon
    "train": ["selection.prompts=['a {}']", "selection.start=0", "model.steps=1"],  # and helpers_emojiland.QUICK
    "generate": ["prompts=['a teddy']", "model.steps=1", "images=1"],
    "evaluate": [
        "concept_file=teddy.safetensors",
        "model.steps=1",
        "evaluation.seeds=1",
        "evaluation.beta=0.6",
        "evaluation.drift=false",
    ],
    "covariance": ["count=300", "output=C.safetensors"],
    "import": ["file=teddy.ckpt", "super_category=teddy"],
    "collect": ["experiment=key_locking"],
    "report": ["experiment=key_locking"],
}
LONG = {  # numbers that mean work: up to how many are run
    "max_steps": 4, "images": 3, "batch_size": 8, "draw_batch": 8, "steps": 4, "resolution": 64, "count": 1000, "captions": 1000,
    "seeds": 2, "accumulate_grad_batches": 3, "devices": 1,
}  # fmt: skip


def short(command: str, key: str, value) -> bool:
    """Whether a command with this value is run: it ends soon, and stays in its folder."""
    many = isinstance(value, (int, float)) and value > LONG.get(key.split(".")[-1], math.inf)
    away = isinstance(value, str) and value.startswith(("/", "..", "hf:"))
    return command in BESIDE and not many and not away


def on_the_line(command: str, key: str, value) -> list[str]:
    """The words that set a key to a value; what is of sweeps, in a sweep."""
    if key.startswith("hydra/"):
        return ["-m", f"{key}={value}"]
    swept = ["-m", *(["seed=0,1"] if "seed" in COMMANDS[command].model_fields else [])]
    return [*(swept if key.startswith(("hydra.sweep.", "hydra.launcher.")) else []), f"++{key}={written(value)}"]


def written(value) -> str:
    """A value as an override has it."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'" if value else "''"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{written(k)}:{written(v)}" for k, v in value.items()) + "}"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    )


@st.composite
def overrides(draw) -> tuple[str, list[str]]:
    """A command and its overrides, of which the last sets a drawn key to a drawn value. Nothing drawn takes long."""
    command, key, value = draw(inputs().filter(lambda one: short(*one)))
    return command, [*BESIDE[command], *on_the_line(command, key, value)]
