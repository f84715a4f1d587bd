"""A Checkpointer for the loops of frameworks. They want to know where a run goes on before they have made its parts.

look()        reads the newest state: the framework sets its counters by it
begin()       puts it into the parts, once the framework has made them
generators()  puts back the generators, once the framework has drawn what it draws at every start
made()        a step is over: the ranks agree whether it is sound, and whether to stop
keep()        what the framework does after a step is over, too: the snapshot of that step
"""

from __future__ import annotations

import contextlib
import math
import signal
from dataclasses import replace
from typing import Any

from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.disk.assembly import Loaded
from ..checkpoint.errors import NoUsableCheckpoint
from ..checkpoint.group import ranks
from ..checkpoint.guard import Guard
from ..checkpoint.memory.tier import Wish
from ..checkpoint.notices import Notices
from ..checkpoint.preemption import StopFlag
from ..checkpoint.sharded.places import Places
from ..checkpoint.state.packing import Packed
from ..errors import NotFinite
from ..rank.progress import progress
from ..rundir.codes import ExitCode
from .data import Place, Watched

_LARGE = ("model", "optimizer")
"""The parts that may be sharded."""


class Keeper(Checkpointer):
    """Of one training run under a supervisor."""

    _announces = False
    _of_rank_0 = frozenset({"extra"})
    """What the framework counts and logs. Only rank 0 logs, and knows that it is rank 0."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._loaded: Loaded | None = None
        self._place = Place()
        self._whole = True
        self._made: tuple[int, Wish] | None = None
        self.stopping = False
        """Whether the state is that of a step's end, and not that of the next step's begin."""

    def look(self, whole: bool = True) -> int | None:
        """The step of the newest good state, the same on every rank; None if there is none. Not `whole`: models and
        optimizers, of which a rank may hold a part only, are read by begin(), and are not in `found`."""
        self._whole = whole
        self._loaded = self._find(wanted=None if whole else lambda part: part.partition(".")[0] not in _LARGE)
        return None if self._loaded is None else self._loaded.manifest.step

    @property
    def found(self) -> dict[str, Any]:
        """The state that look() has found."""
        assert self._loaded is not None
        return self._loaded.shared

    def data_found(self) -> int:
        """The data step from which the run goes on: the step of the state found, moved past skipped data."""
        assert self._loaded is not None
        guard, manifest = Guard(), self._loaded.manifest
        guard.load_state_dict(self.found.get("guard") or {})
        if self._rollback is not None:
            guard.take(self._rollback, manifest.step, manifest.attempt)
        return guard.data_step(manifest.step)

    def forget(self) -> None:
        """The run does not go on from what look() has found."""
        self._loaded = None

    def data(self) -> dict[str, Any] | None:
        """This rank's place in its data, in the state found (see data.Watched). None if it is not known."""
        loaded = self._loaded
        if loaded is None or loaded.manifest.world_size != self._ranks.world_size:
            return None
        return (loaded.own or {}).get("data") or None

    def watches(self, watched: Watched | None) -> None:
        """From now on each state has the place of `watched` in its data."""
        self._place.watched = watched

    def begin(self, start: int = 0, put_back: bool = True, **parts: Any) -> int:
        """The step from which the run goes on: that of the state found, which the `parts` now have (with `put_back`
        off, the framework has given it to them), or else `start`. StateError if the parts cannot be saved."""
        self._have(**parts, data=self._place)
        fresh = self._capture()[0]
        loaded = self._loaded
        if loaded is not None and put_back and (fresh.placed or not self._whole):
            loaded = self._loaded = self._in_parts(loaded, fresh)
        if loaded is not None and put_back:
            self._put_back(loaded, fresh)
        elif loaded is not None:
            self._guard.load_state_dict(loaded.shared.get("guard") or {})
        done = self._go_on(loaded, start)
        # Its tensors may be as large as the model and its optimizer.
        self._loaded = None if loaded is None else replace(loaded, shared={})
        return done

    def _in_parts(self, seen: Loaded, fresh: Packed) -> Loaded:
        """The state that look() has `seen`, with what this rank holds of sharded tensors."""
        loaded = self._find(Places(self._parts, fresh, self._slices))
        if loaded is None or loaded.manifest.digest != seen.manifest.digest:
            raise NoUsableCheckpoint(
                f"the state of step {seen.manifest.step} could be read in part only; the next try takes an older one"
            )
        return loaded

    def rest(self) -> None:
        """Nothing is left to train after the state found, which the framework has put back."""
        assert self._loaded is not None
        step, source = self._loaded.manifest.step, self._loaded.source
        progress().resume_at(step)
        self._notices.resumed(step, source)
        self.generators()
        self._stop.close()

    def generators(self) -> None:
        """The generators of random numbers are now as they were in the state found. Works once."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._apply_own(loaded)

    def share(self, batches: int) -> int:
        """The batches of this rank that are as many as `batches` of each rank that saved the state found."""
        assert self._loaded is not None
        return batches * self._loaded.manifest.world_size // self._ranks.world_size

    def made(self, done: int, loss: float | None = None, at_once: bool = True) -> bool:
        """Step number `done` is over, with this rank's `loss`. Returns whether all ranks are to stop. Then this step
        is saved: `at_once`, or by keep(), which raises SystemExit(75). NotFinite or LossSpike, on every rank, if
        training must not go on from any rank's loss."""
        broken = loss is not None and not math.isfinite(loss)
        agreed = Wish(*self._ranks.any(*self.wish()._replace(broken=broken)))
        self.check(done, loss, agreed)
        progress().counted(done, self._optimizer)
        self._made = None if agreed.stop and at_once else (done, agreed)
        if agreed.stop and at_once:
            self.stopping = True
            with contextlib.suppress(SystemExit):
                self.step(done, agreed)
        return agreed.stop

    def keep(self) -> None:
        """The framework has done what it does after a step (log, evaluate, save), and the next step begins. This state
        is the step's snapshot. After a kill in between, the step is made again, with all that comes after it."""
        if self._made is not None:
            (done, agreed), self._made = self._made, None
            self.step(done, agreed)

    def close(self) -> None:
        """The state after the last step is saved. CheckpointError if it could not be saved."""
        self.keep()
        super().close()

    def listen(self) -> None:
        """SIGTERM comes to this keeper, whoever has taken it since."""
        if not self._stop.is_set:
            before, self._stop = self._stop, StopFlag(signal.SIGTERM)
            before.close()


class Bystander:
    """Takes the place of a Keeper where no state is kept. The ranks agree on when to stop, and on a loss that is not
    finite. Only the framework saves. `why` is said, once, with what happens `instead`."""

    def __init__(self, why: str, instead: str = "it goes on from the program's own checkpoints") -> None:
        self._ranks = ranks()
        self._stop = StopFlag(signal.SIGTERM)
        Notices(self._ranks.rank).say(f"no snapshots: {why}; {instead}")

        self._stops = False

    def keep(self) -> None:
        """SystemExit(75) if all ranks are to stop, and made() was not asked to say so."""
        if self._stops:
            raise SystemExit(ExitCode.PREEMPTED)

    def made(self, done: int, loss: float | None = None, at_once: bool = True) -> bool:
        """Returns whether all ranks are to save this step and to stop: `at_once`, or in keep(). NotFinite, on every
        rank, if any rank's loss is not finite."""
        stop, broken = self._ranks.any(self._stop.is_set, loss is not None and not math.isfinite(loss))
        if broken:
            raise NotFinite(f"the loss of step {done} is {loss}, or another rank's is not finite", done)
        self._stops = stop and not at_once
        return stop

    def listen(self) -> None:
        if not self._stop.is_set:
            before, self._stop = self._stop, StopFlag(signal.SIGTERM)
            before.close()

    def close(self) -> None:
        self._stop.close()
