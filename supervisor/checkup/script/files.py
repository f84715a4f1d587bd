"""Reads a script and the local modules that it imports, and tries its installed packages in a child. Nothing of the
script runs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from supervisor.checkup.script.advice import Imported
from supervisor.checkup.script.source import Source, Unreadable, read
from trainer.rundir.files.codec import decode
from trainer.rundir.programs import program

_LARGEST = 4 << 20
_MOST_FILES = 300
TIME_LIMIT = 120.0
"""Seconds that all imports may take."""


class _Answer(msgspec.Struct):
    missing: dict[str, str]
    causes: dict[str, str]
    seconds: float
    again: float


def script(path: Path) -> tuple[Source, list[str]]:
    """The facts about the script and its local modules, and what they import that is not local (the argument of
    tried()). Unreadable if the script itself cannot be read; a local module that cannot be is passed over."""
    folder = path.resolve().parent
    source = read(_text(path), path.name)
    known, waiting = {path.resolve()}, [*_local(source, folder, folder)]
    while waiting and len(known) < _MOST_FILES:
        file = waiting.pop(0)
        if file in known:
            continue
        known.add(file)
        try:
            found = read(_text(file), os.path.relpath(file, folder))
        except Unreadable:
            continue
        source += found
        waiting += _local(found, folder, file.parent)
    names = [*source.imports, *(f"?{name}" for name in sorted(source.touched))]
    return source, [name for name in names if _is_foreign(name.lstrip("?"), folder)]


def _is_foreign(name: str, folder: Path) -> bool:
    root = name.partition(".")[0]
    return bool(root) and root not in sys.stdlib_module_names and not _files(root, folder)


def _text(path: Path) -> bytes:
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise Unreadable(f"{path} is a folder; name the script in it")
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable(f"{path} is no file")
        if found.st_size > _LARGEST:
            raise Unreadable(f"{path} has {found.st_size / 1e6:.0f} MB: no script is that long")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None


def _local(source: Source, folder: Path, beside: Path) -> Iterable[Path]:
    """The files of the local modules that it imports. `beside`: the folder of its own file."""
    for name in source.imports:
        dots = len(name) - len(name.lstrip("."))
        where = folder
        if dots:
            where = beside
            for _ in range(dots - 1):
                where = where.parent
        yield from _files(name.lstrip(".") or "__init__", where)


def _files(name: str, folder: Path) -> list[Path]:
    """The files that an import of `name` executes, if it is a module in `folder`."""
    found = []
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        base = folder.joinpath(*parts[:end])
        found += [file for file in (base.with_name(f"{base.name}.py"), base / "__init__.py") if _is_file(file)]
    return [file.resolve() for file in found]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def tried(names: Iterable[str], time_limit: float = TIME_LIMIT) -> Imported:
    """What the imports have shown, in a child. `names` are modules, and with a `?` names in modules, which may be
    missing. The current folder is not searched."""
    command = [sys.executable, *program("rank.preload.tried"), *names]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=time_limit, cwd="/", check=False
        )
    except subprocess.TimeoutExpired as error:
        return Imported({}, {}, unknown=f"{_last(error.stdout)} was being imported after {time_limit:.0f} s")
    try:
        found = decode(done.stdout.splitlines()[-1], _Answer)
    except (ValueError, IndexError):
        end = f"exit code {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
        return Imported({}, {}, unknown=f"the import of {_last(done.stdout)} ends the process ({end})")
    return Imported(found.missing, found.causes, found.seconds, found.again)


def _last(output: bytes | None) -> str:
    """The module that was begun last."""
    for line in reversed((output or b"").splitlines()):
        try:
            return decode(line, str).lstrip("?")
        except ValueError:
            continue
    return "torch"
