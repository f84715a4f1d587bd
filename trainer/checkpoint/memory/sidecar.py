"""The sidecar of a snapshot: the fields of a manifest that are not in the files. Rank 0 writes it behind its file."""

from __future__ import annotations

from typing import Any

import torch

from ...rundir.files.codec import encode
from ..format.manifest import table
from ..format.plan import Layout
from .place import Place


class Sidecars:
    """Those of one attempt. The text of a layout is kept from one to the next."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._tables: dict[bool, tuple[Layout, bytes]] = {}

    def text(self, tree: Any, layout: Layout, elsewhere: bool = False) -> bytes:
        """The sidecar of a snapshot with that state and layout, of this node or of the other one that keeps the
        state."""
        known, text = self._tables.get(elsewhere, (None, b""))
        if known is not layout:
            text = encode(table(layout))
            self._tables[elsewhere] = (layout, text)
        about = {"run": self._place.run, "attempt": self._place.attempt, "torch": torch.__version__, "state": tree}
        return encode(about)[:-1] + b',"tensors":' + text + b"}"
