"""Files appear whole or not at all, and a directory that holds somebody else's files is never touched."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pquant_fx.errors import OutputError, Problem

__all__ = ["MARKER", "owned_directory", "write_atomically"]

MARKER = ".pquant_fx"
"""Name of the empty file that marks a directory as made by us: only such a directory may be replaced."""


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` through a temporary sibling, so that a reader sees the old file or the new one.

    Raises OutputError (PQ505) when the place can not be written; the old file then stands unchanged.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


@contextmanager
def owned_directory(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside `path` that becomes `path` when the block succeeds and vanishes when it fails.

    An existing directory is replaced only with `overwrite` and only when it is empty or carries our marker.
    Raises OutputError: PQ506 when it is not ours or overwrite is off, PQ505 when the place can not be written.
    """
    target = Path(path).absolute()
    _refuse_foreign(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        os.chmod(made, 0o777 & ~_umask())
        yield made
        (made / MARKER).touch()
        _refuse_foreign(target, overwrite)
        try:
            _swap(made, target)
        except OSError as error:
            raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _swap(made: Path, target: Path) -> None:
    """Put `made` in the place of `target`; the old content is removed only once the new one stands."""
    if not target.exists():
        os.replace(made, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    os.replace(target, old / "content")
    try:
        os.replace(made, target)
    except OSError:
        os.replace(old / "content", target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _refuse_foreign(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise OutputError(Problem("PQ506", f"'{target}' is a file", "name a directory"))
    if not any(target.iterdir()):
        return
    if not (target / MARKER).exists():
        raise OutputError(Problem("PQ506", f"the directory '{target}' holds files that are not ours", "name an empty or a new directory"))
    if not overwrite:
        remedy = "pass overwrite=True (on the command line --overwrite) to replace what an earlier run wrote"
        raise OutputError(Problem("PQ506", f"the directory '{target}' exists", remedy))


def _unwritable(target: Path, error: OSError) -> OutputError:
    return OutputError(Problem("PQ505", f"can not write '{target}': {error.strerror or error}", "choose a writable place with free space"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
