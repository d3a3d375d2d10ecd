"""What overrides make: the configuration of a command, or of every job of a sweep (-m), before any of them starts."""

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from perfusion.commands.cli import refuse
from perfusion.commands.folders import JobFolders
from perfusion.config import CONF
from perfusion.errors import UserError, fails, first_sentence

MOST = 100  # jobs: more take longer to check than to be refused one by one


@contextmanager
def composed_once() -> Iterator[None]:
    """Within, or in what it decorates, Hydra composes each configuration once, and copies it when it is asked again.

    It is asked up to four times for one, a quarter of a second each: by the check, for the mode, for the batch, for the job.
    """
    load, known = ConfigLoaderImpl.load_configuration, {}

    @wraps(load)
    def once(self, config_name, overrides, run_mode, from_shell=True, validate_sweep_overrides=True):
        key = (str(self.get_search_path().get_path()), os.getcwd(), config_name, *overrides, run_mode, from_shell)
        if key in known:
            return copy.deepcopy(known[key])
        cfg = load(self, config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        if validate_sweep_overrides and len(known) < 2 * MOST:  # what passes the check passes without it
            known[key] = copy.deepcopy(cfg)
        return cfg

    ConfigLoaderImpl.load_configuration = once
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = load


OWN = (HydraException, OmegaConfBaseException)  # errors that Hydra means for the user


def compose(app: str, overrides: list[str], mode: RunMode | None = None) -> DictConfig:
    """hydra.compose; with a mode, what Hydra makes of it, its own settings too. Within initialize_config_dir.

    Raises Hydra's and OmegaConf's errors, and UserError for an override at which they fail in another way.
    """
    loader = GlobalHydra.instance().hydra.config_loader
    # As Hydra itself adds them, in its order: it then asks for the very configuration that is known.
    own = [word for word in (f"hydra.job.name={app}", mode and f"hydra.mode={mode.name}") if word not in overrides]
    load = lambda some: (
        hydra.compose(app, some) if mode is None else loader.load_configuration(app, [*some, *own], run_mode=mode)
    )
    try:
        return load(overrides)
    except OWN:
        raise
    except Exception as error:  # an assert, or what a conversion raises, as at prompts.x=5: a list has no x
        said = f"{type(error).__name__}: {first_sentence(error)[:200]}"
        raise UserError(
            f"{next((one for one in overrides if fails(load, [one], but=OWN)), ' '.join(overrides))} cannot be put into the "
            f"configuration ({said}); perfusion {app} --cfg all shows the keys that are there, and their values."
        ) from error


def split_flags(app: str, words: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags, each as one word, and the overrides: its own parser does not take flags between values.

    A word that is neither ends the process with one sentence.
    """
    parser = get_args_parser()
    parser.error = lambda said: refuse(
        f"{said}; perfusion {app} --help lists keys, perfusion {app} --hydra-help flags."
    )
    given, flags = parser.parse_intermixed_args(words), []
    for action in parser._actions:
        value = getattr(given, action.dest, None)
        if action.option_strings and value not in (None, False):
            flags.append(action.option_strings[0] + ("" if value is True else f"={value}"))
    if given.config_name not in (None, app, f"{app}.yaml"):
        refuse(f"--config-name={given.config_name} does not go with perfusion {app}; leave it out, or run that app.")
    return flags, given.overrides


def check_jobs(app: str, overrides: list[str], check: Callable[[DictConfig], object]) -> None:
    """`check` every job's configuration, composed as Hydra composes it, and its folder; of more than MOST jobs some, with
    every value in one.

    check: returns the job's work where jobs of the same may share a folder, else None. Within initialize_config_dir. What it
    raises, and Hydra's errors, come as they are. Another sweeper than Hydra's own makes its jobs as it goes: they are left to it.
    """
    master = compose(app, overrides, RunMode.MULTIRUN)
    loader = GlobalHydra.instance().hydra.config_loader
    sweeper = master.hydra.sweeper
    if not sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        return
    given = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    given += OmegaConf.to_container(master.hydra.overrides.task, resolve=False)
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(given)
    axes = {one.get_key_element(): _values(one) for one in parsed}  # a later one of the same key stands, as in Hydra
    plain = {one.get_key_element(): one for one in parsed if _is_plain(one) and len(axes[one.get_key_element()]) > 1}
    composed = cache(lambda *fixed: compose(app, list(fixed)))
    folders = JobFolders(app, loader, master)
    for number, job in _jobs(list(axes.values())):
        # Composing takes ten times the check: the values of keys are set in a configuration that is composed once.
        first = [axes[key][0] if key in plain else value for key, value in zip(axes, job)]
        cfg = copy.deepcopy(composed(*first))
        for key, value in zip(axes, job):
            if key in plain:
                _set(cfg, value)
        work = check(cfg)
        folders.add(number, list(job), cfg, number if work is None else work)


def _jobs(axes: list[list[str]]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Jobs with their numbers: all, or a few with each value in one, and such as differ from the first in one value."""
    sizes = list(map(len, axes))
    if math.prod(sizes) <= MOST:
        yield from enumerate(itertools.product(*axes))
        return
    some = [tuple(i % size for size in sizes) for i in range(min(MOST, max(sizes)))]
    some += [tuple(int(i == k) for i in range(len(sizes))) for k, size in enumerate(sizes) if size > 1]
    for places in dict.fromkeys(some):
        number = 0
        for place, size in zip(places, sizes):
            number = number * size + place
        yield number, tuple(axis[place] for axis, place in zip(axes, places))


def _values(override: Override) -> list[str]:
    if override.is_sweep_override() and not override.is_discrete_sweep():
        raise UserError(
            f"{override.input_line} names no values one by one, which this sweeper needs; give them, as in "
            f"{override.get_key_element()}=1,2,3, or choose another with hydra/sweeper=NAME."
        )
    return [job[0] for job in BasicSweeper.split_arguments([override], None)[0]]


def _is_plain(override: Override) -> bool:
    """Whether it sets a key, and neither chooses a file nor adds or deletes."""
    kind = override.is_add() or override.is_force_add() or override.is_delete()
    return not (kind or override.package or (CONF / override.key_or_group).is_dir())


def _set(cfg: DictConfig, override: str) -> None:
    (one,) = OverridesParser.create().parse_overrides([override])
    try:
        OmegaConf.update(cfg, one.key_or_group, one.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigCompositionException(f"Error merging override {override}") from error
