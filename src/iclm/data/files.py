"""Files that are written whole or not at all, and read with errors a user can act on.

A reader of the target never sees half a file: the text goes to a hidden file in the same folder, is flushed to the
disk, and takes the target's name in one step. Whatever goes wrong before that (an error, Ctrl-C), nothing is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from iclm.errors import ConfigurationError, DataError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[TextIO]:
    """Open `path` for writing UTF-8 text so that it appears only when the block ends well.

    Args:
        path: the file to write; missing parent folders are made.
        overwrite: replace an existing file instead of refusing; its permissions stay, and of a link what it names is replaced.

    Yields:
        A text stream with line endings as given.

    Raises:
        ConfigurationError: the path exists and `overwrite` is false, is no file, or cannot be written.
    """
    with _whole(Path(path), overwrite, "x", encoding="utf-8", newline="\n") as stream:
        yield stream


@contextlib.contextmanager
def atomic_write_bytes(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """`atomic_write` for bytes: yields a binary stream."""
    with _whole(Path(path), overwrite, "xb") as stream:
        yield stream


@contextlib.contextmanager
def _whole(path: Path, overwrite: bool, mode: str, **options: Any) -> Iterator[Any]:
    """What both do; `mode` and `options` are those of `open`."""
    _refuse_existing(path, overwrite)
    path = path.resolve() if path.is_symlink() else path
    made = _make_parents(path)
    temporary = path.parent / f".iclm-{secrets.token_hex(8)}.tmp"
    try:
        try:
            stream = open(temporary, mode, **options)  # noqa: SIM115
        except OSError as error:
            raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        _refuse_existing(path, overwrite)
        try:
            if path.exists():
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            os.replace(temporary, path)
        except OSError as error:
            raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def open_for_reading(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading bytes.

    Args:
        path: the file.

    Returns:
        The open binary stream.

    Raises:
        DataError: there is no such file, it is a folder, or it may not be read.
    """
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise DataError(f"{os.fspath(path)}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{os.fspath(path)}: this is a folder; give a file") from error
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{os.fspath(path)!r}: not a file name ({error})") from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits; raises as `open_for_reading`."""
    digest = hashlib.sha256()
    with open_for_reading(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise `ConfigurationError` if `atomic_write` could not write a file, so that long work need not end in it; changes nothing."""
    path = Path(path)
    _refuse_existing(path, overwrite)
    _check_place(path.parent, f"cannot write {path}")


def check_folder_place(out: Path) -> None:
    """Raise `ConfigurationError` if a folder cannot be made, or written to, where it is to be; changes nothing."""
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise ConfigurationError(f"{place} is a file; --out {out} names a folder")
    _check_place(out, f"{out} cannot be written")


def check_replaceable(out: Path, mark: str, own: Iterable[str], what: str, *, overwrite: bool) -> None:
    """Raise `ConfigurationError` unless a folder is new, empty, or to be replaced and nothing but what it should be; changes nothing.

    Args:
        out: the folder.
        mark: the file by which a folder is known to be what is replaced.
        own: patterns of the paths of its files, see `check_own`.
        what: what it is, as in "a run folder".
        overwrite: whether it is to be replaced.
    """
    check_folder_place(out)
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / mark).is_file():
        raise ConfigurationError(f"{out} is not {what}, so it is not replaced; choose another --out")
    if not overwrite:
        raise ConfigurationError(f"{out} exists; pass --overwrite to replace it")
    check_own(out, own, what)


def check_own(out: Path, own: Iterable[str], what: str) -> None:
    """Raise `ConfigurationError` if a folder that is to be replaced holds anything but its own files; changes nothing.

    Args:
        out: the folder.
        own: patterns of paths in it ("stages/invariant/*.json"): * stands for what has no slash in it, and ** at the end for all
            that lies in a folder. A link is looked at, and removed, as one file.
        what: what it is, as in "a run folder".
    """
    foreign = next(_foreign(out, _patterns(own)), None)
    if foreign is not None:
        raise ConfigurationError(
            f"{out} holds {foreign.relative_to(out)}, which is none of its files; {what} is replaced only where it holds nothing "
            "else: move it, or choose another --out"
        )


def remove_own(out: Path, own: Iterable[str]) -> None:
    """Remove from a folder its own files, given as patterns (`check_own`), and the folders in it that are empty then."""
    _remove(out, _patterns(own))


def _patterns(own: Iterable[str]) -> list[tuple[str, ...]]:
    return [tuple(path.split("/")) for path in own]


def _below(path: Path, patterns: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """What is left of the patterns whose first part names a path."""
    return [pattern[1:] for pattern in patterns if pattern and fnmatch(path.name, pattern[0])]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _foreign(folder: Path, patterns: list[tuple[str, ...]]) -> Iterator[Path]:
    """The paths in a folder that no pattern names."""
    for path in sorted(folder.iterdir()):
        below = _below(path, patterns)
        if not _is_folder(path):
            if () not in below and not (below and path.is_symlink()):
                yield path
        elif not any(below):
            yield path
        elif ("**",) not in below:
            yield from _foreign(path, below)


def _remove(folder: Path, patterns: list[tuple[str, ...]]) -> None:
    """Remove from a folder what the patterns name."""
    for path in folder.iterdir():
        below = _below(path, patterns)
        if not _is_folder(path):
            if () in below or (below and path.is_symlink()):
                path.unlink()
        elif ("**",) in below:
            shutil.rmtree(path)
        elif any(below):
            _remove(path, below)
            with contextlib.suppress(OSError):  # it holds something else
                path.rmdir()


def _check_place(folder: Path, what: str) -> None:
    """Raise a `ConfigurationError`, which begins with `what`, if a folder is neither there to be written to nor can be made."""
    place = folder
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
    except OSError as error:
        raise ConfigurationError(f"{what}: {error.strerror}") from error
    if not place.is_dir():
        raise ConfigurationError(f"{what}: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{what}: no permission to write to {place}")


def _refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise a `ConfigurationError` if `path` must not be written."""
    if "\0" in str(path):
        raise ConfigurationError(f"cannot write {str(path)!r}: a file name has no null character")
    try:
        folder, exists = path.is_dir(), os.path.lexists(path)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
    if folder:
        raise ConfigurationError(f"{path} is a folder; give the name of a file to write")
    if exists and not overwrite:
        raise ConfigurationError(f"{path} exists; pass --overwrite to replace it")
    if path.exists() and not path.is_file():
        raise ConfigurationError(
            f"{path} is a device or a pipe, which is not replaced; give the name of a file to write"
        )


def _make_parents(path: Path) -> list[Path]:
    """Make the missing parent folders of `path`; return those made, the deepest first."""
    try:
        missing = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _check_place(path.parent, f"cannot write {path}")
        raise ConfigurationError(f"cannot write {path}: folder {path.parent}: {error.strerror}") from error
    return missing
