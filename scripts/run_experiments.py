"""Run experiments as they are committed, and join each one's jobs into results/ablations; stopped, it goes on where it was.

python scripts/run_experiments.py [NAME ...] [Hydra overrides of the sweeps]     # all but the quick one by default

On one GPU: python scripts/run_experiments.py hydra/launcher=joblib hydra.launcher.n_jobs=8
"""

import subprocess
import sys
from pathlib import Path

from perfusion.experiments.sweep import commands, experiments

# What decides most comes first, so that a run that is cut leaves it.
FIRST = (
    "rates",
    "gates",
    "baselines",
    "key_locking",
    "zero_shot_mask",
    "one_shot",
    "lock_type",
    "sigmoid_bias",
    "sigmoid_temperature",
)
OURS = tuple(name for name in experiments() if name not in FIRST and not name.endswith("quick"))


def main(arguments: list[str]) -> int:
    """The exit code: that of the last experiment that failed, or 0. The others are run all the same."""
    names, overrides = [a for a in arguments if "=" not in a], [a for a in arguments if "=" in a]
    if unknown := [name for name in names if name not in experiments()]:
        print(
            f"run_experiments: {unknown[0]} is no experiment; allowed are: {', '.join(experiments())}.", file=sys.stderr
        )
        return 2
    failed, program = 0, Path(sys.executable).parent
    for name in names or (*FIRST, *OURS):
        sweep, join = (command.split() for command in commands(name))
        for command in ([*sweep, *overrides], join):
            failed = subprocess.run([program / command[0], *command[1:]], check=False).returncode or failed
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
