"""How many steps a program will do, and its loss, as its tqdm bar says: `for step in (bar := tqdm(range(1000)))`,
`bar.set_postfix(loss=…)`.

A bar is believed only if it counts the steps: it has gone on by as many as were done. A bar over a range, or one that
the program moves itself, is the whole training. A bar over a loader is one pass over its data: it needs another bar
around it, of the passes. For people: nothing depends on it.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ...rundir.records.boards import is_training_loss
from ..imports import after_import
from ..progress import progress

_MOST = 8
"""The newest bars that are looked at."""
_SURE = 5
"""Steps for which a bar must have counted alike."""


class Bars:
    """The bars of this process."""

    def __init__(self) -> None:
        self._bars: list[weakref.ref[Any]] = []
        self._first: dict[int, tuple[int, int]] = {}
        """By bar: where it was when it moved first, and the steps that were done then."""
        self._last: dict[int, int] = {}

    def made(self, bar: Any) -> None:
        """`bar` is a tqdm that begins."""
        self._bars = [*self._bars[1 - _MOST :], weakref.ref(bar)]
        self._first.pop(id(bar), None)
        self._last.pop(id(bar), None)

    def total(self, done: int) -> int | None:
        """The steps at the end, if a bar tells them. Called after each step: `done` are."""
        if not self._bars:
            return None
        live = [bar for each in self._bars if (bar := each()) is not None and not bar.disable and bar.total]
        for place, bar in enumerate(live):
            # tqdm counts with a delay. At the moment at which it moves, it is right.
            if self._last.get(id(bar)) == bar.n:
                continue
            self._last[id(bar)] = bar.n
            began, then = self._first.setdefault(id(bar), (bar.n, done))
            if done - then >= _SURE and abs((bar.n - began) - (done - then)) <= 1:
                # The step that was just done is not counted there yet.
                left = int(bar.total - bar.n) - 1
                if bar.iterable is None or isinstance(bar.iterable, range):
                    return done + max(0, left)
                around = next((each for each in live[:place] if isinstance(each.iterable, range)), None)
                if around is not None:
                    return done + max(0, left) + int(max(0, around.total - around.n - 1) * bar.total)
        return None


BARS = Bars()


def follow() -> None:
    """BARS has the bars that the program makes from now on."""
    after_import({"tqdm.std": _hook})


def _hook(module: ModuleType) -> None:
    kind: Any = module.tqdm
    make, said = kind.__init__, kind.set_postfix

    @functools.wraps(make)
    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        with contextlib.suppress(Exception):  # a class of somebody's own
            BARS.made(self)

    @functools.wraps(said)
    def set_postfix(self: Any, ordered_dict: Any = None, refresh: Any = True, **kwargs: Any) -> Any:
        with contextlib.suppress(Exception):
            if (loss := loss_in({**(ordered_dict or {}), **kwargs})) is not None:
                progress().told(loss=loss)
        return said(self, ordered_dict, refresh, **kwargs)

    kind.__init__, kind.set_postfix = made, set_postfix


def loss_in(told: Mapping[str, Any]) -> float | None:
    """The loss of the training among what is shown behind a bar. A tensor, which may be on a GPU, is left alone."""
    for name, value in told.items():
        if is_training_loss(name) and type(value) in (float, int, str):
            return float(value)
    return None
