"""Optimizers or schedulers as one part of a checkpoint."""

from __future__ import annotations

from typing import Any


class Several:
    def __init__(self, each: list[Any]) -> None:
        self._each = each

    def state_dict(self) -> dict[str, Any]:
        return {"each": [one.state_dict() for one in self._each]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for one, its in zip(self._each, state["each"], strict=True):
            one.load_state_dict(its)
