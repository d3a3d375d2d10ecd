"""Which step is kept, and what the curve of the score says of time."""

import json
from pathlib import Path

from helpers_emojiland import QUICK

from perfusion.method.concept import Concept


def train(perfusion_here, folder: str, *overrides: str) -> dict:
    perfusion_here("train", *QUICK, f"hydra.run.dir={folder}", *overrides)
    return json.loads(Path(folder, "result.json").read_text())


def test_a_resumed_run_without_scores_keeps_its_last_step(perfusion_here):
    half = train(perfusion_here, "half", "selection.every=null", "max_steps=1")
    rest = train(perfusion_here, "rest", "selection.every=null", "max_steps=3", "resume=half/last.ckpt")
    assert (half["kept_step"], rest["kept_step"], Concept.load("rest/concept.safetensors").steps) == (1, 3, 3)


def test_seconds_are_of_training_and_grow_over_a_resume(perfusion_here):
    half = train(perfusion_here, "half", "selection.every=1", "max_steps=2")["selection"]
    both = train(
        perfusion_here, "rest", "selection.every=1", "max_steps=3", "resume=half/last.ckpt", "selection.patience=null"
    )["selection"]
    seconds = [step["seconds"] for step in both]
    assert both[:2] == half and 0 < seconds[0] < seconds[1] < seconds[2]
