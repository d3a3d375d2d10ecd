"""Where the jobs of a sweep run, by configuration only: hydra/launcher=joblib, submitit_local, submitit_slurm or ray.

joblib's and submitit's launchers are Hydra's own plugins. Hydra's Ray plugin (1.2.2) needs cloudpickle < 3, which joblib
1.6 and this project's pinned packages do not go with, so a small launcher for today's Ray is here.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict

from perfusion.errors import install

EXTRAS = {  # override: (module it needs, extra)
    "hydra/launcher=joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "hydra/launcher=submitit_local": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    "hydra/launcher=submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    "hydra/launcher=ray": ("ray", "ray"),
    "logger=wandb": ("wandb", "wandb"),
}


def missing_extra(overrides: Sequence[str]) -> str | None:
    """A sentence naming the extra that an override needs and that is not installed."""
    for override in overrides:
        module, extra = EXTRAS.get(override, (None, None))
        if module and not _installed(module):
            return f"{override} needs {module}; install it with {install(extra)}."
    return None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


class RayLauncher(Launcher):
    """Every job of a sweep as a Ray task; results come back in the jobs' order."""

    def __init__(self, address: str | None, num_cpus: int | None, cpus_per_job: float, gpus_per_job: float):
        self.address, self.num_cpus = address, num_cpus
        self.resources = {"num_cpus": cpus_per_job, "num_gpus": gpus_per_job, "max_retries": 0}

    def setup(self, *, hydra_context, task_function, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        import ray

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        ray.init(self.address, num_cpus=self.num_cpus if self.address is None else None, include_dashboard=False)
        try:
            job = ray.remote(**self.resources)(_job)
            shared = ray.put((os.getcwd(), self.hydra_context, self.config, self.task_function, Singleton.get_state()))
            running = [job.remote(shared, initial_job_idx + i, list(o)) for i, o in enumerate(job_overrides)]
            ray.wait(running, num_returns=len(running))  # a process that dies does not stop the others
            return ray.get(running)
        finally:
            ray.shutdown()


def _job(shared, number: int, overrides: list[str]) -> JobReturn:
    """One job, in Ray's process, as Hydra's own launchers run it."""
    folder, hydra_context, config, task_function, state = shared
    os.chdir(folder)
    Singleton.set_state(state)
    setup_globals()
    mine = hydra_context.config_loader.load_sweep_config(config, overrides)
    with open_dict(mine):
        mine.hydra.job.id, mine.hydra.job.num = f"{mine.hydra.job.name}_{number}", number
    HydraConfig.instance().set_config(mine)
    return run_job(
        hydra_context=hydra_context,
        config=mine,
        task_function=task_function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def register(overrides: Sequence[str]) -> None:
    """Make hydra/launcher=ray known to Hydra where it is asked for."""
    if "hydra/launcher=ray" in overrides:
        Plugins.instance().register(RayLauncher)


# Hydra takes plugins from the package hydra_plugins alone, and a file of ours there would not be found in an editable
# installation: so this module goes by such a name too, here and in Ray's processes.
try:
    importlib.import_module("hydra_plugins")
except ModuleNotFoundError:  # no plugin is installed
    sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    sys.modules["hydra_plugins"].__path__ = []
sys.modules["hydra_plugins.perfusion"] = sys.modules[__name__]
RayLauncher.__module__ = "hydra_plugins.perfusion"
