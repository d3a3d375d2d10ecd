"""What the campaign's commands share: their command lines, a small world to run in, the figures kept."""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from processes import HOW, Child, preload

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]
os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
RESULTS = ROOT / "results/reliability.json"


def arguments(doc: str, **counts: int | str) -> argparse.Namespace:
    """The command line: how many of each, the random seed, and whether results/reliability.json is written."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    for name, count in counts.items():
        parser.add_argument(f"--{name}", type=type(count), default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures are kept, beside the others'")
    return parser.parse_args()


@contextmanager
def workplace():
    """A folder for the campaign's files, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="campaign-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def small_world(folder: Path) -> Path:
    """The tests' small Emojiland, in `folder`, for commands that run here."""
    os.environ |= {"PERFUSION_ASSETS": str(folder), "PERFUSION_CACHE": str(folder / "cache")}
    folder.mkdir(parents=True, exist_ok=True)
    preload()
    import perfusion.config

    perfusion.config.ASSETS = folder

    def build():
        from helpers_emojiland import build

        build(folder)

    assert Child(build, folder, folder / "build.log").wait() == 0, (folder / "build.log").read_text()
    return folder


def keep(path: Path, command: str, figures: dict, started: float) -> None:
    """Write one command's figures into the results, beside the other commands'; totals stand on top."""
    from perfusion.atomic import alone, write_text
    from perfusion.results import surroundings

    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path, "results", wait=True):
        before = json.loads(path.read_text())["commands"] if path.exists() else {}
        asked = [word for word in sys.argv[1:] if not word.startswith("--results=")]
        about = {"command": f"python scripts/campaign/{command}.py {' '.join(asked)}".strip(), "how": HOW}
        about |= {"seconds": round(time.perf_counter() - started)} | surroundings()
        commands = before | {command: {"figures": figures, "made_with": about}}
        totals: dict = {}
        for name in sorted(commands):
            for key, value in commands[name]["figures"].items():
                both = key in totals and isinstance(value, (int, float))
                totals[key] = totals[key] + value if both else value
        write_text(path, json.dumps(totals | {"commands": commands}, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
