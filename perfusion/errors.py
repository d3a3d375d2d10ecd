"""What a user reads: the one exception meant for them, how to install what is missing, where a file is."""

import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DISTRIBUTION = "key-locked-perfusion"  # the name on the package index; the import name is perfusion


class UserError(ValueError):
    """A mistake in what the user gave: one sentence naming the field, its value, what is allowed and the way out.

    The command line prints it without a traceback and exits with code 2; a library caller can catch it as ValueError.
    """


@contextmanager
def loading(wrong: str, way_out: str) -> Iterator[None]:
    """A with-block that reads files which others wrote: whatever a library raises at damaged ones becomes a UserError.

    wrong: names the file and says what is wrong with it; the reason follows in brackets, then the way out.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # each library has its own: KeyError, SafetensorError, tokenizers' bare Exception
        said = first_sentence(error)[:300]
        raise UserError(f"{wrong} ({type(error).__name__}{said and f': {said}'}); {way_out}.") from error


def fails(call: Callable, *given, but: tuple[type[Exception], ...] = ()) -> bool:
    """Whether call(*given) raises an error of another kind than `but`: which of several values another library fails at."""
    try:
        call(*given)
    except but:
        return False
    except Exception:
        return True
    return False


def first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0].rstrip(".")


class Stopped(KeyboardInterrupt):
    """A training that was asked to stop (Ctrl-C, SIGTERM), after all that it learned was saved; `code`: how to exit."""

    def __init__(self, signal: int):
        super().__init__(signal)
        self.code = 128 + signal


def reader_left() -> bool:
    """Whether nobody reads standard output any more, as after `perfusion ... | head -1`; asked upon a BrokenPipeError."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # 0: errors alone, of which a closed other end is one
    return bool(poll.poll(0))


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def told(path: str | Path) -> str:
    """A path as it is shown: from the working directory on where it lies within, absolute elsewhere."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
