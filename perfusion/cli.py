"""The one console command: `perfusion APP [Hydra overrides]`."""

import importlib
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

import perfusion.sweep  # noqa: F401 (registers the resolver of job folders)
from perfusion.config import CONF
from perfusion.engines import missing_extra, register
from perfusion.errors import UserError

APPS = {  # name: (module, what it does)
    "train": ("perfusion.train", "learn a concept from pictures"),
    "generate": ("perfusion.generate", "draw prompts with learned concepts"),
    "evaluate": ("perfusion.evaluation.evaluate", "score a concept over prompts, noises and operating points"),
    "collect": ("perfusion.evaluation.collect", "join an experiment's jobs into one table, with intervals"),
    "report": ("perfusion.report", "one self-contained HTML page of a run or of an experiment"),
    "covariance": ("perfusion.measure_covariance", "measure a model's C over captions, into a file"),
    "import": ("perfusion.interchange", "turn a .ckpt concept of ChenDarYen's Perfusion into a concept file"),
    "measure": ("perfusion.emojiland.measure", "measure Emojiland's models on what they never saw"),
}
FILE_APPS = {  # of perfusion.files: words in place of overrides
    "info": "print a concept file's metadata and shapes: perfusion info FILE",
    "export": "write its embedding for other programs: perfusion export FILE --textual-inversion OUT",
    "push": "upload it to the Hugging Face hub: perfusion push FILE user/name [--private]",
}
PROGRAM = sys.argv[0]


def main(argv: list[str] | None = None) -> None:
    """Run an app; a user's mistake is one sentence on standard error and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: perfusion APP [Hydra overrides] [-m]\n")
        print("\n".join(f"  {app:12}{what}" for app, (_, what) in APPS.items()))
        print("\n".join(f"  {app:12}{what}" for app, what in FILE_APPS.items()))
        print("\nperfusion APP --help lists an app's configuration.")
        sys.exit(0)
    app, overrides = argv[0], argv[1:]
    if app in FILE_APPS:
        try:
            return importlib.import_module("perfusion.files").main(app, overrides)
        except UserError as error:
            _refuse(str(error))
    if app not in APPS:
        _refuse(f"{app} is not an app of perfusion; allowed are: {', '.join([*APPS, *FILE_APPS])}.")
    if sentence := missing_extra(overrides):
        _refuse(sentence)
    register(overrides)
    if not any(o.startswith("-") for o in overrides):  # with flags (-m, --help, ...) Hydra itself checks
        _check(app, overrides)
    sys.argv = [f"perfusion {app}", *overrides]
    hydra.main(str(CONF), app, version_base="1.3")(task)()


def task(cfg):
    """What Hydra runs, here or in another process: the app that the configuration is named after."""
    app = HydraConfig.get().job.config_name
    if sys.argv[0] == f"perfusion {app}":
        sys.argv[:1] = [PROGRAM, app]  # what Lightning starts its other processes with, under DDP
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if "wandb" in (cfg.get("logger") or {}):
        from perfusion.dashboard import check_login

        try:
            check_login(cfg.logger.wandb)
        except UserError as error:  # of every job of a sweep
            _refuse(str(error))
        of_sweep = Path(HydraConfig.get().sweep.dir).name if sweep else None
        cfg.logger.wandb.group = cfg.logger.wandb.group or cfg.get("name") or of_sweep
    try:
        return importlib.import_module(APPS[app][0]).run(cfg)
    except UserError as error:
        if sweep:  # the other jobs of a sweep go on
            raise
        _refuse(str(error))


def _check(app: str, overrides: list[str]) -> None:
    """Compose once, for an error of one sentence."""
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            hydra.compose(app, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(" ".join(str(error).split()))


def _refuse(sentence: str) -> None:
    print(f"perfusion: {sentence}", file=sys.stderr)
    sys.exit(2)
