"""Files that are there whole or not at all: written under another name beside the path, then renamed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
