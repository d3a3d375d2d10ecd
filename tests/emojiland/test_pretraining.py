"""Pretraining in a fixed time, and weights that are there before it ends."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from perfusion.config import CONF
from perfusion.emojiland.cache import SceneCache
from perfusion.emojiland.pretraining import Pretraining, fit, pixels
from perfusion.errors import UserError


class Mean(Pretraining):
    """Learns the pictures' mean colour; keeps every step's rate."""

    def __init__(self, cfg, scenes):
        super().__init__(cfg, scenes)
        self.scenes, self.model, self.rates = scenes, nn.Linear(1, 3), []

    def loss(self, rows):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        x = pixels(self.take(self.scenes.images, rows)).mean((2, 3))
        return {"loss": (self.model(torch.ones(len(x), 1)) - x).square().mean()}


@pytest.mark.slow
def test_a_schedule_over_minutes_ends_with_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path))
    with initialize_config_dir(str(CONF / "pretrain"), version_base="1.3"):
        cfg = compose(
            "vae", ["scenes=8", "batch=4", "warmup=1", "steps=1000000", "timed=true", "minutes=0.05", "ema=.9"]
        )
        untimed = compose("vae", ["scenes=8", "timed=true"])
    scenes = SceneCache(8, 1, held_out=False, folder=tmp_path / "scenes")
    module = Mean(cfg, scenes)
    fit(module, "mean")
    assert 10 < len(module.rates) < 1_000_000  # the minutes ended it
    assert max(module.rates) > 0.9 * cfg.lr and module.rates[-1] < 0.05 * cfg.lr
    assert sorted(module.rates[1:], reverse=True) == module.rates[1:]
    with pytest.raises(UserError, match="timed=true needs the minutes"):
        fit(Mean(untimed, scenes), "mean_2")
