"""What the campaign's commands share: a small world, commands in processes that can be killed, files checked, figures kept.

A command runs in a fork of a process that has imported everything: it starts in milliseconds, and is a process of its own,
which SIGKILL ends as it ends any.
"""

import argparse
import csv
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]
os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
RESULTS = ROOT / "results/reliability.json"
VOLATILE = {
    "seconds",
    "train_seconds",
    "job_seconds",
    "median_seconds",
    "peak_mib",
    "surroundings",
    "commits",
    "sum",
    "folder",
}
LOGS = {
    "metrics.csv",
    "hparams.yaml",
    "multirun.yaml",
}  # Lightning's, written line by line, and Hydra's of where it ran


def arguments(doc: str, **counts: int | str) -> argparse.Namespace:
    """The command line: how many of each, the random seed, and whether results/reliability.json is written."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    for name, count in counts.items():
        parser.add_argument(f"--{name}", type=type(count), default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures are kept, beside the others'")
    return parser.parse_args()


def preload() -> None:
    """Import what every command imports, so that a fork has it; nothing is computed, which would start threads."""
    for name in (
        "perfusion.commands.apps", "perfusion.learning.train", "perfusion.evaluation.evaluate", "perfusion.experiments.collect",
        "perfusion.commands.covariance", "perfusion.commands.generate", "perfusion.evaluation.figure", "open_clip", "hydra",
        "perfusion.emojiland.facts", "perfusion.emojiland.captions", "transformers.models.clip.modeling_clip",
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "matplotlib.pyplot",
    ):  # fmt: skip
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


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


class Child:
    """A function in a process of its own, with its working folder and its output in a file."""

    def __init__(self, work: Callable, cwd: Path, log: Path, limit: int | None = None):
        self.started, self.log = time.perf_counter(), log
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.setsid()
            os.chdir(cwd)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1), os.dup2(out, 2)
            if limit:
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            work()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)

    def wait(self) -> int:
        """Its exit code; -9 of one that was killed."""
        _, status = os.waitpid(self.pid, 0)
        self.seconds = time.perf_counter() - self.started
        return os.waitstatus_to_exitcode(status)

    def kill(self, after: float) -> bool:
        """SIGKILL so many seconds after its start; whether it was still running."""
        time.sleep(max(0, self.started + after - time.perf_counter()))
        done, _ = os.waitpid(self.pid, os.WNOHANG)
        if done:
            return False
        os.killpg(self.pid, signal.SIGKILL) if os.getpgid(self.pid) == self.pid else os.kill(self.pid, signal.SIGKILL)
        self.wait()
        return True


def perfusion(*overrides: str) -> Callable:
    """The command line, for `Child`."""

    def run():
        sys.argv = ["perfusion", *overrides]
        from perfusion.commands.cli import main

        main(list(overrides))

    return run


def one_sentence(log: Path) -> bool:
    """Whether a command's output has its one sentence (a progress bar may close after it), and no traceback."""
    said = log.read_text(errors="replace")
    return "Traceback" not in said and said.count("perfusion: ") == 1


def files(folder: Path) -> list[Path]:
    """What a command leaves for people: no logs, no locks, nothing that it calls unfinished (.part)."""
    return [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".hydra" not in p.parts and not p.name.startswith(".") and ".part" not in str(p)
        and p.suffix not in (".log", ".lock", ".pdf") and p.name not in LOGS
    ]  # fmt: skip


def content(path: Path):
    """What a file says, without clocks and places. Raises where it is not whole."""
    from PIL import Image
    from safetensors import safe_open

    from perfusion.learning.resume import read as read_checkpoint

    kind = path.suffix
    if kind == ".json":
        return _plain(json.loads(path.read_text()))
    if kind in (".safetensors", ".state"):
        with safe_open(path, framework="np") as file:
            return {"metadata": _plain(file.metadata())} | {k: digest(file.get_tensor(k)) for k in file.keys()}  # noqa: SIM118
    if kind == ".ckpt":
        return _tensors(read_checkpoint(path))
    if kind == ".png":
        with Image.open(path) as picture:
            return digest(picture.convert("RGBA"))
    if kind == ".csv":
        text = path.read_text()
        assert text.endswith("\n"), f"{path} is cut"
        return list(csv.reader(text.splitlines()))
    return path.read_text()


def digest(array) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in VOLATILE}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _tensors(value):
    """A checkpoint with every tensor as its digest."""
    import torch

    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), digest(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    if isinstance(value, dict):
        kept = {str(k): v for k, v in value.items() if "path" not in str(k) and "dir" not in str(k)}
        return {k: _tensors(v) for k, v in kept.items() if k not in VOLATILE}
    return [_tensors(v) for v in value] if isinstance(value, (list, tuple)) else value


def keep(path: Path, command: str, figures: dict, started: float) -> None:
    """Write one command's figures into the results, beside the other commands'; totals stand on top."""
    from perfusion.atomic import alone, write_text
    from perfusion.results import surroundings

    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path, "results", wait=True):
        before = json.loads(path.read_text())["commands"] if path.exists() else {}
        about = {"command": f"python scripts/campaign/{command}.py {' '.join(sys.argv[1:])}".strip()}
        about |= {"seconds": round(time.perf_counter() - started)} | surroundings()
        commands = before | {command: {"figures": figures, "made_with": about}}
        totals: dict = {}
        for name in sorted(commands):
            for key, value in commands[name]["figures"].items():
                both = key in totals and isinstance(value, (int, float))
                totals[key] = totals[key] + value if both else value
        write_text(path, json.dumps(totals | {"commands": commands}, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def rng(seed: int) -> random.Random:
    return random.Random(seed)
