"""Distributions beside ours, read from their files alone: a torch that is newer than tested, and namesakes of our
packages."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from supervisor.checkup.checks import Check, Verdict, read

OLDEST, NEWEST = (2, 6), (2, 15)
"""The versions of torch that .ci/matrix has run with."""
_FACADES = {"trainer": "supervise", "supervise": "trainer"}
"""The names under which a file of ours is installed. Beside each: the name to use if another distribution has taken
it."""
_OWN = "supervise"
_VERSION = re.compile(r"^__version__ = ['\"](.+?)['\"]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Namesake:
    """Another distribution with files in our package `name`. `first`: an import finds theirs."""

    name: str
    distribution: str
    first: bool


def torch_version() -> str:
    """The version in torch's own file, without importing torch. Empty if there is no such file."""
    spec = find_spec("torch")
    origin = spec.origin if spec else None
    found = _VERSION.search(read(Path(origin).with_name("version.py"))) if origin else None
    return found[1] if found else ""


def untested(version: str) -> str:
    """A warning about that `version` of torch. Empty if it lies between the oldest and the newest tested version."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or OLDEST <= (found := (int(numbers[1]), int(numbers[2]))) <= NEWEST:
        return ""
    if found < OLDEST:
        return f"torch {version} is older than {_dotted(OLDEST)}, the oldest that was tested"
    return f"torch {version} is newer than {_dotted(NEWEST)}, the newest that was tested"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def namesakes(path: Sequence[str] | None = None) -> list[Namesake]:
    """The distributions on `path` that have files in our packages. The default is the path of this process without
    PYTHONPATH, which is the user's own. Lists of files are read only if there is something beside our own file."""
    if path is None:
        own = {os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
        path = [entry for entry in sys.path if entry not in own]
    found = []
    for entry in dict.fromkeys(path):
        for name in _FACADES:
            if (first := _intruded(Path(entry), name)) is not None:
                found += [Namesake(name, owner, first) for owner in _owners(entry, name)]
    return found


def _intruded(entry: Path, name: str) -> bool | None:
    """Whether the package `name` in `entry` begins with the file of another distribution. None if it is missing, or
    ours alone."""
    init = entry / name / "__init__.py"
    try:
        if f'"_{_OWN}"' not in init.read_text(errors="replace"):
            return True
        others = {path.name for path in init.parent.iterdir()} - {"__init__.py", "__pycache__"}
    except OSError:
        return True if (entry / f"{name}.py").is_file() else None
    return False if others else None


def _owners(entry: str, name: str) -> Iterator[str]:
    # Its import takes 20 ms, and it is rarely needed.
    from importlib.metadata import distributions

    for distribution in distributions(path=[entry]):
        files = distribution.read_text("RECORD") or ""
        owned = f"\n{name}/" in f"\n{files}" or f"\n{name}.py," in f"\n{files}"
        if distribution.metadata["Name"] != _OWN and owned:
            yield f"{distribution.metadata['Name']} {distribution.version}"


def said_of(other: Namesake) -> tuple[str, str]:
    """(the harm that `other` does, what to do about it), one sentence each."""
    name, left = other.name, _FACADES[other.name]
    if other.first:
        return f"{other.distribution} has the name `{name}`, too: `import {name}` is theirs", f"import ours as {left}"
    # Our file has replaced theirs.
    again = f"{sys.executable} -m pip install --force-reinstall --no-deps {other.distribution.replace(' ', '==')}"
    text = f"{other.distribution} has the name `{name}`, too, and ours was installed over it: `import {name}` is ours"
    return text, f"{again}; then import ours as {left}"


def names() -> Check:
    """One finding for all of them."""
    found = [said_of(other) for other in namesakes()]
    if not found:
        return Check("names", Verdict.OK, "no other package is installed under our names")
    return Check("names", Verdict.WARN, "; ".join(text for text, _ in found), "; ".join(hint for _, hint in found))


def warnings() -> list[str]:
    """The warnings of a launch about torch and namesakes, one sentence each."""
    torch = untested(torch_version())
    return [*filter(None, [torch]), *(f"{text}; {hint}" for text, hint in map(said_of, namesakes()))]
