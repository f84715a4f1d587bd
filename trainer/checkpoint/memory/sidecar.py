"""The sidecar of a snapshot: the fields of a manifest that are not in the files. Rank 0 writes it behind its file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ...rundir.files.codec import encode
from ..format.manifest import table
from ..format.plan import Layout
from .place import Place


class Sidecars:
    """Those of one attempt. The texts of a layout, and of parts of the state that are the same objects as before, are
    kept from one to the next."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._tables: dict[bool, tuple[Layout, bytes]] = {}
        self._parts: dict[str, tuple[Any, bytes]] = {}

    def text(self, tree: Any, layout: Layout, elsewhere: bool = False) -> bytes:
        """The sidecar of a snapshot with that state and layout, of this node or of the other one that keeps the
        state."""
        known, text = self._tables.get(elsewhere, (None, b""))
        if known is not layout:
            text = encode(table(layout))
            self._tables[elsewhere] = (layout, text)
        about = {"run": self._place.run, "attempt": self._place.attempt, "torch": torch.__version__}
        return encode(about)[:-1] + b',"state":' + self._state(tree) + b',"tensors":' + text + b"}"

    def _state(self, tree: Any) -> bytes:
        """encode(tree). Most of it names the tensors of models and of optimizers' states, which seldom move: a Packer
        gives the same dict again then."""
        return _object((name, self._part(name, part)) for name, part in tree.items())

    def _part(self, name: str, part: Any) -> bytes:
        if isinstance(part, dict) and "state" in part:
            # Of its keys this one alone: a user's other ones may be new in each step, and would pile up.
            return _object((key, self._kept(name, v) if key == "state" else encode(v)) for key, v in part.items())
        return self._kept(name, part)

    def _kept(self, name: str, value: Any) -> bytes:
        known, text = self._parts.get(name, (self, b""))
        if known is not value:
            text = encode(value)
            self._parts[name] = (value, text)
        return text


def _object(items: Iterable[tuple[str, bytes]]) -> bytes:
    return b"{" + b",".join(encode(name) + b":" + text for name, text in items) + b"}"
