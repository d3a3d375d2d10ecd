"""Commands in processes that can be killed.

Each is a fork of a process that has imported everything: it starts in milliseconds, and is a process of its own, which
SIGKILL ends as it ends any. Times are the process's own seconds of work, so that a busy machine moves no kill.
"""

import gc
import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HOW = "commands are forks of a process that has imported everything, of 1 thread each"
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink")
TICK = os.sysconf("SC_CLK_TCK")


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
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("clip_text_model")  # a table that takes each process a quarter of a second
    torch.set_num_threads(1)
    gc.collect(), gc.freeze()  # else each fork's collector copies all of it


class Child:
    """A function in a process of its own, with its working folder and its output in a file."""

    def __init__(self, work: Callable, cwd: Path, log: Path, limit: int | None = None):
        self.log = log
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

    def wait(self, limit: float | None = None) -> int:
        """Its exit code; -9 of one that was killed, as it is after `limit` seconds."""
        while (
            limit is not None
            and limit > 0
            and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.1)
            limit -= 0.1
            if limit <= 0:
                os.killpg(self.pid, signal.SIGKILL)
        _, status, used = os.wait4(self.pid, 0)
        self.seconds = used.ru_utime + used.ru_stime
        return os.waitstatus_to_exitcode(status)

    def kill(self, after: float = 0) -> bool:
        """SIGKILL once it has worked for so many seconds; whether it was still running."""
        while self._worked() < after:
            time.sleep(0.003)
        running = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        if running:  # with its group, once it has made one of its own
            end = os.killpg if os.getpgid(self.pid) == self.pid else os.kill
            end(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL and running

    def _worked(self) -> float:
        """Its seconds of work so far; infinite once it has ended."""
        state, *fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return float("inf") if state == "Z" else (int(fields[10]) + int(fields[11])) / TICK


def perfusion(*overrides: str) -> Callable:
    """The command line, for `Child`."""

    def run():
        import torch

        assert torch.get_num_threads() == 1
        sys.argv = ["perfusion", *overrides]
        from perfusion.commands.cli import main

        main(list(overrides))

    return run


def watched(work: Callable, change: Callable[[int], None]) -> Callable:
    """`work` that calls `change(n)` just before its n-th change to the file system: a file opened to write, renamed, ..."""

    def run():
        count = [0]

        def hook(event, args):
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in CHANGES:
                count[0] += 1
                change(count[0])

        sys.addaudithook(hook)
        work()

    return run


def killed_at(work: Callable, number: int) -> Callable:
    """`work` that ends by SIGKILL at its number-th change to the file system, before it is made."""
    return watched(work, lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == number else None)


def one_sentence(log: Path) -> bool:
    """Whether a command's output has its one sentence (a progress bar may close after it), and no traceback."""
    said = log.read_text(errors="replace")
    return "Traceback" not in said and said.count("perfusion: ") == 1
