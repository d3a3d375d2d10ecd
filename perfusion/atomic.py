"""Files that are there whole or not at all: written under another name beside the path, then renamed."""

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from perfusion.errors import UserError

BEGINNINGS = {  # of the files that keys name
    "a concept file": rb'.{8}\{"__metadata__":\{.*base_hash',
    "a word's embedding": rb'.{8}\{"<',
    "a covariance file": rb"",  # which is not written over at all
    "a page": rb"<!doctype html",
    "a table of results": rb"\s*\{",
    "a picture": rb"\x89PNG",
}


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
        # A device, say, in whose place a file would come; a folder is refused by the renaming.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(errno.EEXIST, "it is no regular file")
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


@contextmanager
def alone(path: str | os.PathLike, field: str, wait: bool = False) -> Iterator[None]:
    """A with-block that no other process enters for the same file or folder; the system opens it again where one is killed.

    field: what named the path. wait: until the other has left. Raises UserError where one is inside, or none can enter.
    """
    path = Path(path)
    lock = FileLock(
        path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock"), timeout=-1 if wait else 0
    )
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{field}={path} is being written by another run; give this one another place, or start it when that has ended."
        ) from error
    except OSError as error:
        raise WriteError(
            f"{field}={path} cannot be written ({error.strerror}); free some space, or give a place that you may write to."
        ) from error
    try:
        yield
    finally:
        lock.release()


def write_text(path: str | os.PathLike, text: str) -> None:
    with whole(path) as part:
        part.write_text(text)


def write_tensors(path: str | os.PathLike, tensors: dict, metadata: dict[str, str]) -> None:
    """A safetensors file of torch tensors, whose bytes depend on what it holds alone: the library's own order is random."""
    from safetensors.torch import save

    data = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with whole(path) as part:
        part.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


def read_tensors(path: str | os.PathLike, framework: str) -> tuple[dict, dict[str, str]]:
    """Tensors, of numpy ("np") or of torch ("pt"), and metadata of a safetensors file. Raises UserError for any other."""
    try:
        open(path, "rb").close()  # safetensors itself says of whatever fails that there is no such file
        with safe_open(path, framework=framework) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        known = {FileNotFoundError: "does not exist", IsADirectoryError: "is a folder"}
        found = known.get(type(error), f"cannot be read ({error.strerror})")
        raise UserError(f"concept file {path} {found}; give the path of a saved .safetensors concept.") from error
    except (SafetensorError, TypeError) as error:  # TypeError: of a kind of number that numpy has not
        raise UserError(
            f"{path} is not a safetensors file ({error}); only safetensors concepts are read, never pickles (.pt, .bin, .ckpt)."
        ) from error


def write_json(path: str | os.PathLike, result: dict) -> str:
    """One key a line; returns the text, for a command that also prints it."""
    text = json.dumps(result, indent=1)
    write_text(path, text + "\n")
    return text


def check_place(field: str, path: str | os.PathLike, kind: str) -> None:
    """Raises UserError where no file can be written at `path`, by beginning one there, or where one of another kind lies.

    field: what named it; kind: of BEGINNINGS.
    """
    path = Path(path)
    way_out = f"give a file in a folder that you can write to, as in {field}=outputs/{path.name or 'NAME'}."
    if path.exists() and not path.is_file():
        raise UserError(f"{field}={path} is {'a folder' if path.is_dir() else 'no regular file'}; {way_out}")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.exists():
            with path.open("rb") as file:
                head = file.read(2000)
            if head and not re.match(BEGINNINGS[kind], head, re.DOTALL | re.IGNORECASE):
                raise UserError(f"{field}={path} is there already and is not {kind}: it would be lost; {way_out}")
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise UserError(f"{field}={path} cannot be written ({error.strerror}); {way_out}") from error
