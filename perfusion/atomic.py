"""Files that are there whole or not at all: written under another name beside the path, then renamed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perfusion.errors import UserError


@contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """A with-block writes to the path that it is given; `path` has the new content once the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    yield part
    os.replace(part, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    with whole(path) as part:
        part.write_text(text)


def write_json(path: str | os.PathLike, result: dict) -> str:
    """One key a line; returns the text, for a command that also prints it."""
    text = json.dumps(result, indent=1)
    write_text(path, text + "\n")
    return text


def check_place(field: str, path: str | os.PathLike) -> None:
    """Raises UserError where no file can be written at `path`, by beginning one there; `field` is what named it."""
    path = Path(path)
    way_out = f"give a file in a folder that you can write to, as in {field}=outputs/{path.name or 'NAME'}."
    if path.is_dir():
        raise UserError(f"{field}={path} is a folder; {way_out}")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise UserError(f"{field}={path} cannot be written ({error.strerror}); {way_out}") from error
