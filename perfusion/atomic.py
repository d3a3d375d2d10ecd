"""Files that are there whole or not at all: written under another name beside the path, then renamed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from perfusion.errors import UserError


class WriteError(UserError, OSError):
    """A file that cannot be written: a full disk, a folder of others."""


@contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """A with-block writes to the path that it is given; `path` has the new content once the block ends without error.

    It has the permissions that any new file of this process has. Raises WriteError where it cannot be written; what lay
    at `path` is then as it was.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")  # some file systems end names at 255 bytes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode  # by the umask; safetensors makes its files readable by their owner alone
        yield part
        os.chmod(part, mode)
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, (OSError, SafetensorError)) and not isinstance(error, UserError):
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise WriteError(
                f"{path} cannot be written ({reason}); free some space, or give a place that you may write to."
            ) from error
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    with whole(path) as part:
        part.write_text(text)


def write_json(path: str | os.PathLike, result: dict) -> str:
    """One key a line; returns the text, for a command that also prints it."""
    text = json.dumps(result, indent=1)
    write_text(path, text + "\n")
    return text
