"""The memory tier of one rank: a snapshot of the state in shared memory, copied while the next step is computed.

With a spare core, or with the state on a GPU (else all of this happens in take(), see copier):

    training thread   optimizer.step(k) | take: capture, stage |  forward  backward  | gate | optimizer.step(k+1)
    copying thread                      '-> begin -> fill -> commit (k is safe)      ^
                                                               a late copy is waited for here, in an optimizer hook

Parameters and optimizer state do not change in between. Buffers, generators and numbers do, so take() captures them.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..errors import StateError
from ..group import Ranks
from ..nodes.twins import Part
from ..sharded.layouts import Layouts
from ..state.packing import Led, Packed
from ..state.repacking import Repacker
from ..state.state import Stateful, capture_rank
from .copier import spare_cores
from .cuda import is_captured
from .newest import Newest, segment_of, twins_of
from .place import Place
from .planner import Job, NoSnapshots, Planner
from .segment import Buffer, Removed
from .sidecar import Sidecars

_BANDWIDTH = 0.25
_SETTLED_S = 10.0
_LATE_S, _PROMISED_S = 1.0, 20.0
"""Seconds that an owed snapshot waits for a buffer, and one of which a checkpoint is promised. The cause is a late rank
or a flush."""


class Memory:
    """Snapshots of `parts`. OSError if the place cannot hold any. `problem` says why there are no more snapshots."""

    def __init__(
        self,
        place: Place,
        parts: Mapping[str, Stateful],
        spare: bool | None = None,
        led: Led = lambda specs: frozenset(),
        layouts: Layouts | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """`spare`: whether a core is spare for copying; None: found out here. `led` chooses the tensors that each rank
        has its own of. `layouts`: what the ranks agree on; None: each rank holds all tensors whole.
        `ranks`: those of the place; None: all are on this node."""
        self.problem: str | None = None
        self.removed = False
        """Whether the problem is that somebody else has removed the snapshots. Then there is room for new ones."""
        self.left_out: int | None = None
        """The newest step whose snapshot was due and left out."""
        self.stall_s = 0.0
        """Seconds for which all snapshots so far have stopped training."""
        self.cost_s = 0.0
        """Seconds that the newest snapshot has cost training: its thread's time, its waiting, and a quarter of the
        copying thread's CPU time (for memory bandwidth)."""
        nodes = place.nodes if place.nodes is not None and place.nodes.several else None
        self.ring = nodes is not None and nodes.ring
        """Whether no node has a whole snapshot. Whoever takes one looks whether the newest is safe (see Newest)."""
        self.segment = segment_of(place, place.rank)
        self.made = 0
        """How often memory was made beside training."""
        self.unready: int | None = None
        """The newest step whose snapshot was left out because memory for it was being made."""
        self.spare = spare_cores(place.here) if spare is None else spare
        self._place, self._pins = place, nodes is None or nodes.of[place.rank] == 0
        self._planner = Planner(parts, place.rank, place.world_size, self.spare, led, layouts, nodes)
        self._twins = twins_of(place, ranks, self._pins) if ranks is not None else None
        self.newest = Newest(self.segment, self._twins, place)
        self._job: Job | None = None
        self._ungated: int | None = None  # the step of the last snapshot, if an unseen one may have changed it
        self._needed = 0
        self._each_step = False
        """Whether the newest snapshot came a step after the one before."""
        self._sidecars, self._pack_drawn = Sidecars(place), Repacker()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._spent_s, self._waited_s, self._copied_s = 0.0, 0.0, 0.0
        self._waits = True  # an owed snapshot does, for a buffer: not after one that has waited in vain
        # Daemon: a rank that dies of an exception must not wait for this thread. The finalizer lets a running copy end
        # first.
        self._thread = threading.Thread(
            target=_serve, args=(weakref.ref(self), self._jobs, self._idle), name="snapshot", daemon=True
        )
        self._thread.start()
        self._finish = weakref.finalize(self, _finish, self._jobs, self._thread)
        itself = weakref.ref(self)

        def before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            if (memory := itself()) is not None:
                memory.gate()

        # A hook of every optimizer: a second one may change tensors that are copied with the first one's state.
        self._hook = register_optimizer_step_pre_hook(before_step)

    def take(self, step: int, extra: Any, pin: bool = False, owed: bool = False) -> None:
        """The present state will be this rank's snapshot of `step`, unless another rank is late, or `problem` is set.
        StateError if no checkpoint can hold it.
        With `pin` it stays until a flush has read it. If it is `owed`, it waits a little for a buffer before it is left
        out."""
        self._each_step = step - 1 == self.newest.step
        self.newest.step = step
        if self._is_making() and not pin:
            self._leave_out(step, unready=True)
            self._pass_on(Part(step))
            return
        self.wait()
        late_s = self._planner.copier.late_s if self._planner.copier is not None else 0.0
        self.cost_s = self._spent_s + self._waited_s + late_s + self._copied_s * _BANDWIDTH
        self.stall_s += self._waited_s
        if self._job is not None:
            # Nothing of it is held while the next one is planned: its image may be as large as the state.
            self._ungated, self._job = None if self._job.is_gated else self._job.step, None
        began, unseen = time.perf_counter(), self._planner.unseen
        try:
            job = self._planner.job(step, extra, pin, owed)
        except StateError:
            raise  # no checkpoint can hold it: better now than after hours without one
        except Exception as error:
            self._fail(step, error)
            self._pass_on(Part(step))
            return
        if job is None:
            self._leave_out(step, unready=False)
            self._pass_on(Part(step))
            return
        if self._planner.unseen and not unseen and self._ungated is not None:
            # A CUDA graph may have changed it while it was copied.
            self.segment.take_back(self._ungated)
        self._job = job
        if job.copier.overlaps:
            self._idle.clear()
            job.copier.mark()
            self._jobs.put(job)
            if job.at_once:
                job.copier.gate()
        else:
            self.work(job)
        self._waited_s, self._spent_s = 0.0, time.perf_counter() - began
        self.stall_s += self._spent_s

    def _fail(self, step: int, error: Exception) -> None:
        """There are no more snapshots. No other rank waits for that of `step`."""
        why = str(error) if isinstance(error, OSError) else repr(error)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            why = self._place.too_small(self._needed, self.ring, self._planner.whole)
        self.removed = isinstance(error, Removed)
        self.problem = str(error) if isinstance(error, Removed | NoSnapshots) else f"no snapshots: {why}"
        self.segment.skip(step)

    def _is_making(self) -> bool:
        if self._idle.is_set() or self._job is None:
            return False
        with self._waiting():
            return self._job.copier.is_making()

    def _leave_out(self, step: int, unready: bool) -> None:
        self.left_out, self.unready = step, step if unready else self.unready
        self.segment.skip(step)

    def gate(self) -> None:
        """Waits until parameters and optimizer state may be changed."""
        self._planner.stepped = True
        job, copier = self._job, self._planner.copier
        if is_captured():
            # This runs once, and the graph often. Nothing outside of it can be waited for on the device.
            self._planner.unseen = True
            self._idle.wait()
        elif copier is not None:
            copier.stepping()
            if self._each_step and not copier.overlaps and self._twins is None:
                # Now, not after the step: a death between the step and the commit loses the step. If it fails, take()
                # will say so.
                with self._waiting(), contextlib.suppress(Exception):
                    self.segment.prepare()
            if job is not None and not job.image.held and not self._idle.is_set():
                with self._waiting():
                    if job.moved is None:
                        job.moved = job.changed()  # the step that begins now changes all of them
                    copier.gate()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """The time that the block takes counts: training waits meanwhile."""
        began = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - began

    def wait(self) -> None:
        """Waits until the last snapshot, if there was one, is committed."""
        if not self._idle.is_set():
            with self._waiting():
                self._idle.wait()

    def arrive(self) -> None:
        """Waits until the last snapshot is committed here, unless memory for it is being made: that may take long."""
        if not self._is_making():
            self.wait()

    @property
    def unplanned(self) -> bool:
        """Whether the newest snapshot that was due was left out because the ranks have not agreed on its layout."""
        return self._planner.unplanned

    def forget(self) -> None:
        """The next snapshot is planned anew."""
        self._planner.forget()

    @property
    def by_steps(self) -> bool:
        """Whether the cost of a snapshot is seen in the time of steps only."""
        return self._planner.copier is not None and self._planner.copier.by_steps

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being copied."""
        return not self._idle.is_set()

    def tick(self) -> list[tuple[float, bool]]:
        """Called once a step: (seconds on the device, whether a snapshot was copied) of steps that have ended."""
        return self._planner.copier.tick(self.busy) if self._planner.copier is not None else []

    @property
    def over(self) -> str | None:
        """Why there are no more snapshots."""
        return self.problem or (self._twins.problem if self._twins is not None else None)

    def _pass_on(self, part: Part) -> None:
        if self._twins is not None:
            self._twins.pass_on(part)

    @property
    def under_way(self) -> bool:
        """Whether the newest snapshot is being copied here, or is on its way to, or from, another node."""
        return not self._idle.is_set() or (self._twins is not None and self._twins.under_way)

    @property
    def moving_s(self) -> float | None:
        """Seconds for which the newest snapshot was on the network; None if only little of it goes to other nodes."""
        return self._twins.moving_s if self._twins is not None and self._planner.whole else None

    def settle(self) -> None:
        """The last snapshot is committed on every node that keeps it, unless another rank stands still."""
        self.wait()
        if self._twins is not None:
            self._twins.settle(_SETTLED_S)

    def close(self) -> None:
        """No snapshot is being copied, and none will be. Existing snapshots stay."""
        self._hook.remove()
        self._finish()
        if self._twins is not None:
            self._twins.close(_SETTLED_S)
        self.segment.close()

    def work(self, job: Job) -> None:
        """`job` is done; called by the copying thread, if there is one."""
        began, part = time.thread_time(), Part(job.step)
        try:
            part = self._write(job) or part
        except Exception as error:
            # Any exception: if the copying thread died of it, training would wait for it for ever.
            self._fail(job.step, error)
        finally:
            self._pass_on(part)
            if job.copier.overlaps:
                self._copied_s = time.thread_time() - began
                job.copier.finish()

    def _write(self, job: Job) -> Part | None:
        own = capture_rank(self._place.rank, job.generators, job.own, self._pack_drawn)
        header = job.image.header(own)
        sidecar = self._sidecars.text(job.tree, job.image.layout) if self._place.rank == 0 else b""
        payload = job.image.payload(header, own)
        self._needed = payload
        copier, size = job.copier, payload + len(sidecar)
        if copier.registers and (job.image.held or not job.pin) and not self.segment.is_mapped(size):
            copier.open()
            self.made += 1
        buffer = self._begin(job, size)
        if buffer is None:
            self._leave_out(job.step, unready=False)
            return None
        copier.register(buffer)
        if copier.making and not job.image.held:
            self._leave_out(job.step, unready=True)
            return None
        job.image.fill(buffer, header, own, sidecar, copier.copy)
        if changed := job.changed() if job.moved is None else job.moved:
            # It has values of after its step. From now on these are copied before training goes on.
            self._planner.give_up(changed)
            self.segment.skip(job.step)
            return None
        self.segment.commit(buffer, job.step, payload, len(sidecar))
        return self._part(job, buffer, header, own)

    def _part(self, job: Job, buffer: Buffer, header: bytes, own: Packed) -> Part | None:
        """What the other nodes need of the snapshot in `buffer`."""
        if self._twins is None or not self._twins.sends:
            return None
        sidecar, layout = b"", self._planner.elsewhere
        if layout is not None and self._place.rank == 0:
            sidecar = self._sidecars.text(job.tree, layout, elsewhere=True)
        return Part(job.step, job.pin, *job.image.apart(buffer, header, own, self._planner.whole), sidecar)

    def _begin(self, job: Job, size: int) -> Buffer | None:
        """A buffer, or None. An owed snapshot waits for one, but not again after a wait in vain if no checkpoint is
        promised."""
        buffer = None
        longest = _PROMISED_S if job.pin else _LATE_S if self._waits else 0.0
        until = time.monotonic() + (longest if job.owed else 0.0)
        pin = job.step if job.pin and self._pins else None
        while (self._twins is not None and self._twins.behind) or (buffer := self.segment.begin(size, pin)) is None:
            if time.monotonic() >= until:
                break
            time.sleep(0.001)
        self._waits = buffer is not None or (self._waits and not job.owed)
        return buffer


def _serve(memory: weakref.ref[Memory], jobs: queue.SimpleQueue[Job | None], idle: threading.Event) -> None:
    while (job := jobs.get()) is not None:
        if (itself := memory()) is not None:
            itself.work(job)
        # First of all: this frame would keep the last job's tensors, and the memory tier, alive.
        del job, itself
        idle.set()


def _finish(jobs: queue.SimpleQueue[Job | None], thread: threading.Thread) -> None:
    jobs.put(None)
    if thread is not threading.current_thread():
        thread.join()
