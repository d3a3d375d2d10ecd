"""Every YAML in conf/ composes."""

from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from perfusion.config import CONF
from perfusion.experiments.sweep import key, resolved
from perfusion.learning.trainer import loggers_of

APPS = sorted(p.stem for p in CONF.glob("*.yaml"))
CHOICES = sorted((p.parent.name, p.stem) for p in CONF.glob("*/*.yaml") if p.parent.name != "pretrain")
PRETRAIN = sorted(p.stem for p in (CONF / "pretrain").glob("*.yaml"))


def compose(folder: Path, name: str, overrides=()):
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        return hydra.compose(name, list(overrides))


@pytest.mark.parametrize("app", APPS)
def test_apps_compose(app):
    assert ("model" in compose(CONF, app)) == (app not in ("collect", "report"))


@pytest.mark.parametrize("group, name", CHOICES)
def test_choices_compose(group, name, tmp_path):
    cfg = compose(CONF, "train", [f"{'+' * (group == 'experiment')}{group}={name}"])
    if group == "experiment":  # its arms override what is there, and the claims are about them
        arms = list(cfg.get("arms", {}))
        assert name == "sweep" or (cfg.name == name and len(arms) > 1)
        assert {c[side] for c in cfg.comparisons for side in ("better", "worse")} <= set(arms)
        assert len({key(resolved(OmegaConf.merge(cfg, {"arm": arm}))) for arm in arms}) == len(arms)
        return
    assert OmegaConf.to_container(cfg, resolve=name not in ("custom", "stable_diffusion"))[group] or name == "none"
    if group == "logger":
        kinds = [type(logger).__name__ for logger in loggers_of(cfg.logger, tmp_path)]
        assert kinds == [] if name == "none" else ["CSVLogger", *(["WandbLogger"] if name == "wandb" else [])]


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_composes(name):
    assert OmegaConf.to_container(compose(CONF / "pretrain", name), resolve=True)["batch"] > 0
