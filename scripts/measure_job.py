"""What a sweep's job spends its time on: key_locking's locked arm, trained and evaluated once, timed by part.

python scripts/measure_job.py     # writes results/job.json
"""

import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from hydra import compose, initialize_config_dir

from perfusion.atomic import write_json
from perfusion.config import CONF, concept_of, native_bfloat16
from perfusion.evaluation.evaluate import Scores
from perfusion.experiments.sweep import resolved, run

PARTS = {  # none lies within another
    "unet_forward": (UNet2DConditionModel, "forward"),
    "backward": (torch.Tensor, "backward"),
    "vae_decode": (AutoencoderKL, "decode"),
    "scores": (Scores, "of"),
}


def main() -> None:
    spent = Counter()

    def timed(part: str, function):
        def call(*args, **kwargs):
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - started

        return call

    for part, (owner, name) in PARTS.items():
        setattr(owner, name, timed(part, getattr(owner, name)))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        asked = ["+experiment=key_locking", "arm=locked", "concept=cat", "evaluation.split=final"]
        cfg = resolved(compose("train", asked))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        result = run(cfg, concept_of(cfg), home, home / "trainings")
    seconds = result["job_seconds"]
    print(
        write_json(
            "results/job.json",
            {
                "what": "a job of key_locking, seconds; training: its train_seconds; evaluation: drawing and scoring",
                "job": seconds,
                "training": result["training"]["train_seconds"],
                "evaluation": result["seconds"],
                **{part: round(value, 1) for part, value in spent.items()},
                "unet_share": round((spent["unet_forward"] + spent["backward"]) / seconds, 3),
                "threads": torch.get_num_threads(),
                "cores": os.cpu_count(),
                "bfloat16": native_bfloat16(),
            },
        )
    )


if __name__ == "__main__":
    main()
