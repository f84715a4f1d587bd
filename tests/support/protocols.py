"""The ways in which files of a run come to be: what is done, what may be found after a crash, what is then promised.

Each is done by the product's own code. `look` is what its own readers make of what is found, and what they leave: it
may change the folder it is given, as a recovery does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.kernel import Recorder

Marks = frozenset[str]


def _nothing(root: Path) -> None:
    pass


@dataclass(frozen=True)
class Protocol:
    """`allowed` says what is wrong with what `look` found after the marks passed. `redundant`: the mutants that change
    nothing, and why."""

    act: Callable[[Path, Recorder], None]
    look: Callable[[Path], Any]
    allowed: Callable[[Marks, Any], str | None]
    before: Callable[[Path], None] = _nothing
    redundant: Mapping[str, str] = field(default_factory=dict)
    power: bool = True
    recover: Callable[[Path], Any] | None = None
    """What the next run does before anything new, which may be cut short as well."""
    mutated: bool = True
    """Whether careless programs are tried too: not where the parts are tried as such in another."""
