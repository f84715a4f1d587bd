"""The losses that a loop gives to its Checkpointer: whether training may go on, and which data is skipped."""

from __future__ import annotations

from torch import Tensor

from ..rank.progress import progress
from ..rundir.records.rollback import Rollback
from .disk.assembly import Loaded
from .guard import Guard, Window
from .memory.tier import Wish
from .notices import Notices


def number(loss: float | Tensor) -> float:
    """The value of a loss, also of one that still has its graph: torch warns of a conversion of it."""
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


class Losses:
    """The part of a Checkpointer that looks at losses."""

    _guard: Guard
    _rollback: Rollback | None
    _done: int
    resume: str

    @property
    def skip(self) -> tuple[Window, ...]:
        """The windows of data steps that this run skips, half open, oldest first; known after restore()."""
        return self._guard.skip

    def data_step(self, step: int) -> int:
        """The index of the data for `step`: `step` itself, unless data before it is skipped."""
        index = self._guard.data_step(step)
        progress().data_step = index
        return index

    def tell(self, total: int) -> None:
        """People see that the loop will have done `total` steps at its end, and so how long it will take."""
        progress().told(total=total)

    def check(self, done: int, loss: float | None, agreed: Wish) -> None:
        """For a loop with its own collective, before step(): judges the `loss` of step number `done`. NotFinite or
        LossSpike, on every rank, if training must not go on from any rank's. None: this rank has none."""
        if loss is not None:
            progress().told(loss=loss, step=done)
        self._guard.judge(done, float("nan") if agreed.broken else loss, agreed.spiked)

    def _pass_over(self, loaded: Loaded | None, notices: Notices) -> None:
        """The data that a rollback names is skipped from now on, and a note says so."""
        if self._rollback is None or self.resume == "never":
            return
        window = self._guard.take(self._rollback, self._done, loaded.manifest.attempt if loaded else None)
        if window:
            notices.skipped(self._done, window)
