"""The one console command: `perfusion APP [Hydra overrides]`."""

import argparse
import errno
import importlib
import os
import signal
import sys
from typing import NoReturn

from perfusion.commands import terminal
from perfusion.errors import UserError, install, reader_left

APPS = {  # name: (module, what it does)
    "train": ("perfusion.learning.train", "learn a concept from pictures"),
    "generate": ("perfusion.commands.generate", "draw prompts with learned concepts"),
    "evaluate": ("perfusion.evaluation.evaluate", "score a concept over prompts, noises and operating points"),
    "collect": ("perfusion.experiments.collect", "join an experiment's jobs into one table, with intervals"),
    "report": ("perfusion.experiments.report", "one self-contained HTML page of a run or of an experiment"),
    "covariance": ("perfusion.commands.covariance", "measure a model's C over captions, into a file"),
    "import": ("perfusion.commands.interchange", "turn a .ckpt concept of ChenDarYen's Perfusion into a concept file"),
    "measure": ("perfusion.emojiland.measure", "measure Emojiland's models on what they never saw"),
}
FILE_APPS = {  # of perfusion.commands.concept_files: words in place of overrides
    "info": "print a concept file's metadata and shapes: perfusion info FILE",
    "export": "write its embedding for other programs: perfusion export FILE --textual-inversion OUT",
    "push": "upload it to the Hugging Face hub: perfusion push FILE user/name [--private]",
}
PAGES = {
    "web": ("perfusion.web.command", "open a page to teach and to play: perfusion web [--port N] [Hydra overrides]")
}


def main(argv: list[str] | None = None) -> None:
    """Run an app; a user's mistake is one sentence on standard error and exit code 2.

    Where the reader of standard output leaves early (| head -1) it ends without a word, as other tools do.
    """
    try:
        try:
            _main(argv)
        finally:
            sys.stdout.flush()  # while an error can still be told: at its end the interpreter prints its own
    except OSError as error:
        left = isinstance(error, BrokenPipeError) and reader_left()
        if not left and error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest of the buffer goes nowhere
        if left:  # the signal itself, left to act, would end the page over a visitor's connection
            sys.exit(128 + signal.SIGPIPE)
        refuse(
            f"the answer or a file cannot be written ({error.strerror}); free some space, or send it to another place."
        )


def _main(argv: list[str] | None) -> None:
    argv = terminal.take_flags(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: perfusion APP [Hydra overrides] [-m] [-q | -v]\n")
        print("\n".join(f"  {app:12}{what}" for app, (_, what) in (APPS | PAGES).items()))
        print("\n".join(f"  {app:12}{what}" for app, what in FILE_APPS.items()))
        print(
            "\nperfusion APP --help lists an app's configuration; -q shows the answer alone, -v all that libraries say."
        )
        sys.exit(0)
    app, overrides = argv[0], argv[1:]
    if app in FILE_APPS:
        try:
            from perfusion.commands import concept_files

            return concept_files.main(app, overrides)
        except UserError as error:
            refuse(str(error))
        except OSError as error:
            if error.filename is None:  # of a terminal or a pipe
                raise
            refuse(of_a_file(error))
    if app not in APPS | PAGES:
        refuse(f"{app} is not an app of perfusion; allowed are: {', '.join([*APPS, *PAGES, *FILE_APPS])}.")
    try:
        module = importlib.import_module(PAGES[app][0] if app in PAGES else "perfusion.commands.apps")
    except ModuleNotFoundError as error:
        refuse(f"{app} needs {error.name}, which is not installed; install it with {install('train')}.")
    if app not in PAGES:
        return module.start(app, overrides)
    try:
        module.main(overrides)
    except UserError as error:
        refuse(str(error))


class Parser(argparse.ArgumentParser):
    """For words that Hydra does not configure; those that it does not take are one sentence, too."""

    def error(self, message: str) -> NoReturn:
        refuse(f"{message}; give it as in {' '.join(self.format_usage().split()[1:])}.")


def of_a_file(error: OSError) -> str:
    """What a user reads where the system does not give a file, or take one."""
    where = f"{error.filename} cannot be written or read" if error.filename else "a file cannot be written or read"
    return f"{where} ({error.strerror}); free some space, or give files and folders that you may read and write."


def refuse(sentence: str) -> NoReturn:
    """End with one sentence on standard error and exit code 2."""
    print(f"perfusion: {sentence}", file=sys.stderr)
    sys.exit(2)
