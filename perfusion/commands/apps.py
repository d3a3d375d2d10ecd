"""The commands that Hydra configures: composed, checked, run here or by a sweep's launcher."""

import importlib
import logging
import os
import re
import shlex
import shutil
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from perfusion.atomic import alone, write_text
from perfusion.commands import terminal
from perfusion.commands.cli import APPS, of_a_file, refuse
from perfusion.commands.folders import check_folder, check_hydra, is_first_process
from perfusion.commands.sweeping import check_jobs, compose, composed_once, split_flags
from perfusion.config import CONF, check, not_taken
from perfusion.errors import Stopped, UserError, first_sentence, reader_left, told
from perfusion.experiments import sweep  # registers the resolver of job folders, here and in other processes
from perfusion.experiments.launchers import missing_extra, register

PROGRAM = sys.argv[0]
SWEEPS = {"-m", "--multirun"}


@composed_once()
def start(app: str, overrides: list[str]) -> None:
    """Run an app on the command line's overrides; Ctrl-C ends it with exit code 130, without a traceback."""
    flags, overrides = split_flags(app, overrides)
    overrides = [_of_group(o) for o in overrides]
    if sentence := missing_extra(overrides):
        refuse(sentence)
    register(overrides)
    if set(flags) <= SWEEPS:  # with other flags (--help, ...) Hydra itself checks
        _check(app, [*flags, *overrides])
    sys.argv = [f"perfusion {app}", *flags, *overrides, f"hydra.job.name={app}"]  # what the log file is named after
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra ends the process itself, with part of a traceback
    logging.raiseExceptions = False  # a log line that a full disk does not take is not worth a traceback
    try:
        hydra.main(str(CONF), app, version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException, UserError) as error:
        refuse(sentence_of(app, error))
    except Stopped as stop:
        sys.exit(stop.code)
    except KeyboardInterrupt:
        print(f"perfusion: {app} is stopped.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_left():
            raise
        cause = error.__cause__ if isinstance(error, ValueError) else error  # logging's, of its file
        if not isinstance(cause, OSError) or cause.errno is None:
            if sentence := _of_hydra(app, [*flags, *overrides], error):
                refuse(sentence)
            raise
        refuse(of_a_file(cause))


def task(cfg):
    """What Hydra runs, here or in another process: the app that the configuration is named after."""
    terminal.start()
    app = HydraConfig.get().job.config_name
    if sys.argv[0] == f"perfusion {app}":
        sys.argv[:1] = [PROGRAM, app]  # what Lightning starts its other processes with, under DDP
    several = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        cfg = _checked(app, cfg)
    except UserError as error:
        if several:
            raise
        refuse(str(error))
    if "wandb" in (cfg.get("logger") or {}):
        from perfusion.learning.dashboard import check_login

        try:
            check_login(cfg.logger.wandb)
        except UserError as error:  # of every job of a sweep
            refuse(str(error))
        of_sweep = Path(HydraConfig.get().sweep.dir).name if several else None
        cfg.logger.wandb.group = cfg.logger.wandb.group or cfg.get("name") or of_sweep
    try:
        folder, shared = Path(HydraConfig.get().runtime.output_dir), app in ("collect", "report", "measure")
        mine = is_first_process()
        with alone(folder, "hydra.run.dir", wait=several or shared) if mine else nullcontext():
            if app == "train" and cfg.name:
                return sweep.job(cfg)
            result = importlib.import_module(APPS[app][0]).run(cfg)
            if app == "train" and result and cfg.picture and not several:
                _after_training(cfg, folder, result["concept"])
            return result
    except UserError as error:
        if several:  # the other jobs of a sweep go on
            raise
        refuse(str(error))


def value(text: str) -> str:
    """A text as an override holds it: quoted where Hydra would read more than a text in it."""
    plain = re.fullmatch(r"[\w./*+~-]+", text, re.ASCII)
    return text if plain else QuotedString(text, Quote.double).with_quotes()


def _after_training(cfg, folder: Path, trigger: str) -> None:
    """The run as one page, and what to try with the concept."""
    from perfusion.experiments.report import of_run

    write_text(folder / "report.html", of_run(folder))
    file = value(told(cfg.concept_file or folder / "concept.safetensors"))
    program = "perfusion" if shutil.which("perfusion") else told(PROGRAM)
    if program.endswith("__main__.py"):
        program = "python -m perfusion"
    given = HydraConfig.get().overrides.task
    model = [word for word in given if word.startswith("model")]
    app, asked = "generate", [*model, f"concepts={{{trigger}: {file}}}", f'prompts=["a {trigger} on a beach"]']
    if cfg.method.module:  # of a baseline, whose file load_concepts does not read
        what = [word for word in given if word.startswith(("method", "concept=", "concept."))]
        app, asked = "evaluate", [*model, *what, f"concept_file={file}"]
    print(f"report:    {told(folder / 'report.html')}")
    print(f"next:      {program} {app} {shlex.join(asked)}")


def _check(app: str, overrides: list[str]) -> None:
    """Compose once, for an error of one sentence; a sweep's every job."""
    values = [o for o in overrides if o not in SWEEPS]
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            if values != overrides or "hydra.mode=MULTIRUN" in values:
                check_jobs(app, values, lambda cfg: _work(app, cfg))
            else:
                cfg = compose(app, values, RunMode.RUN)
                folder = Path(cfg.hydra.run.dir)
                check_hydra(cfg.hydra, cfg.name if _is_job(app, cfg) else None)
                with open_dict(cfg):
                    del cfg["hydra"]
                if not _is_job(app, cfg):  # which looks for its result itself
                    check(app, cfg)
                    check_folder(app, folder, cfg, "hydra.run.dir")
    except (HydraException, OmegaConfBaseException, UserError) as error:
        refuse(sentence_of(app, error))


def _work(app: str, cfg: DictConfig) -> str | None:
    """Check a sweep's job; what it does, of an experiment, whose jobs do the same once."""
    if not _is_job(app, cfg):
        return check(app, cfg) and None
    sweep.check_job(cfg)
    return sweep.job_key(_root_=cfg)


def sentence_of(app: str, error: Exception) -> str:
    """What a user reads of an error of a configuration: Hydra's own errors name no allowed value, and give its grammar for a way out."""
    said = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        allowed = sweep.experiments() if group == "experiment" else error.options  # Hydra names what they share, too
        return f"{group}={name} is unknown; allowed are: {', '.join(allowed)}."
    if isinstance(error, OverrideParseException):
        reason = said.partition(" See ")[0].removeprefix(f"Error parsing override '{error.override}' ")
        return (
            f"{error.override} cannot be read as KEY=VALUE ({reason}); a text that holds any of "
            "{}[]()=:,$~ is quoted twice, as in 'prompts=\"a {b}: c\"'."
        )
    key = re.fullmatch(
        r"Error merging override [+~]*(.*)|Could not override '.*'. To append to your config use \+(.*)", said
    )
    if key and key[1] and re.match(r"hydra[./]", key[1]):
        return _not_hydras(app, key[1], error.__cause__)
    return (key and not_taken(app, key[1] or key[2], bool(key[1]))) or said


def _of_hydra(app: str, overrides: list[str], error: Exception) -> str | None:
    """The sentence where Hydra itself fails, before any job, at its own settings or flags: few of them have types."""
    given = [o for o in overrides if re.match(r"[+~]*hydra[./]|--", o) and o not in SWEEPS]
    of_a_job = JobReturn.return_value.fget.__code__  # what Hydra gets a job's result, or its error, by
    if not given or any(frame.f_code is of_a_job for frame, _ in traceback.walk_tb(error.__traceback__)):
        return None
    return _not_hydras(app, " ".join(given), error)


def _not_hydras(app: str, given: str, error: BaseException | None) -> str:
    said = first_sentence(error)[:200] if error else ""
    said = said and f"{type(error).__name__}: {said}"
    allowed = "true, false, a logger's name or a list of them" if "hydra.verbose=" in given else (
        f"what perfusion {app} --cfg hydra shows"
    )  # fmt: skip
    return f"{given} does not work{said and f' ({said})'}; {allowed} is allowed."


def _checked(app: str, cfg: DictConfig) -> DictConfig:
    """The configuration, every key checked; an experiment's job checks its own, with its arm's settings."""
    return cfg if _is_job(app, cfg) else check(app, cfg)


def _is_job(app: str, cfg: DictConfig) -> bool:
    return bool(app == "train" and cfg.get("name"))


def _of_group(override: str) -> str:
    """logger=null and logger=false are plainly meant as none, ~/runs as a folder at home; another group's choice is a name."""
    group, _, choice = override.partition("=")
    if choice.startswith("~/"):  # which a shell leaves as it is there, and Hydra does not read
        return f"{group}={os.path.expanduser(choice)}"
    if group == "logger" and choice.lower() in ("null", "false", ""):
        return "logger=none"
    if (
        (CONF / group).is_dir()
        and group not in ("", "hydra")
        and (re.fullmatch(r"null|true|false|[-+.\d]*", choice, re.IGNORECASE))
    ):
        names = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        refuse(f"{override} names no choice of {group}; allowed are: {', '.join(names)}.")
    return override
