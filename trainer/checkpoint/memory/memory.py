"""The memory tier of one rank: a snapshot of the state in shared memory, copied while the next step is computed.

With a spare core, or with the state on a GPU (else all of this happens in take(), see copier):

    training thread   optimizer.step(k) | take: capture, stage |  forward  backward  | gate | optimizer.step(k+1)
    copying thread                      '-> begin -> fill -> commit (k is safe)      ^
                                                               a late copy is waited for here, in an optimizer hook

Parameters and optimizer state do not change in between. Buffers, generators and numbers do, so take() captures them.
"""

from __future__ import annotations

import errno
import math
import queue
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ...rundir.files.codec import encode
from ..errors import StateError
from ..format.manifest import table
from ..format.plan import Layout, plan
from ..sharded.layouts import Layouts
from ..state import rng
from ..state.packing import Led, Packed, Packer, Steadiness
from ..state.state import Stateful, capture, capture_own, capture_rank, steadiness
from .copier import Copier, copier_for, spare_cores
from .image import Image
from .segment import Buffer, Removed, Segment
from .walks import Walked

_BANDWIDTH = 0.25
_LATE_S = 1.0
"""Seconds that an owed snapshot waits for a buffer. The cause is a late rank or a flush."""


@dataclass(slots=True)
class _Job:
    step: int
    pin: bool
    owed: bool
    image: Image
    tree: Any
    generators: dict[str, Any]
    own: Packed
    watched: list[tuple[torch.Tensor, int]]
    """The steady tensors that are copied later, with their versions at the capture."""
    moved: frozenset[int] | None = None
    """The addresses of those that had changed when the optimizer's next step began; None if that has not begun."""

    def changed(self) -> frozenset[int]:
        """The addresses of those that have changed by now."""
        return frozenset(tensor.data_ptr() for tensor, version in self.watched if tensor._version != version)


@dataclass(frozen=True, slots=True)
class Place:
    """The run, attempt and rank of the snapshots, and their place."""

    folder: Path
    rank: int
    world_size: int
    attempt: int
    run: str | None


class Memory:
    """Snapshots of `parts`. OSError if the place cannot hold any. `problem` says why there are no more snapshots."""

    def __init__(
        self,
        place: Place,
        parts: Mapping[str, Stateful],
        spare: bool | None = None,
        led: Led = lambda specs: frozenset(),
        layouts: Layouts | None = None,
    ) -> None:
        """`spare`: whether a core is spare for copying; None: found out here. `led` chooses the tensors that each rank
        has its own of. `layouts`: what the ranks agree on; None: each rank holds all tensors whole."""
        self.unplanned = False
        """Whether the newest snapshot that was due was left out because the ranks have not agreed on its layout."""
        self.problem: str | None = None
        self.removed = False
        """Whether the problem is that somebody else has removed the snapshots. Then there is room for new ones."""
        self.left_out: int | None = None
        """The newest step whose snapshot was due and left out."""
        self.stall_s = 0.0
        """Seconds for which all snapshots so far have stopped training."""
        self.cost_s = 0.0
        """The cost of the newest snapshot for training, in seconds: the training thread's time, its waiting, and a
        quarter of the copying thread's CPU time (for memory bandwidth)."""
        self.segment = Segment(place.folder, place.rank, place.world_size, place.attempt)
        self._place, self._parts = place, parts
        self._walked = walked = Walked(model) if isinstance(model := parts.get("model"), nn.Module) else None
        slices = (layouts or Layouts()).slices.held
        self._packer = Packer(self._steadiness, led, slices, lambda: walked and walked.state)
        self._layouts = layouts
        self._unsteady: frozenset[int] = frozenset()
        """The addresses of tensors that were seen to change between a snapshot and the optimizer's next step."""
        self._job: _Job | None = None
        self._image: Image | None = None
        self._needed = 0
        self.spare = spare_cores(place.world_size) if spare is None else spare
        self._table: tuple[object, bytes] = (None, b"")
        """The newest layout, and its text in a sidecar."""
        self._copier: Copier | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._spent_s, self._waited_s, self._copied_s = 0.0, 0.0, 0.0
        self._patient = True
        # Daemon: a rank that dies of an exception must not wait for this thread. The finalizer lets a running copy end
        # first.
        self._thread = threading.Thread(
            target=_serve, args=(weakref.ref(self), self._jobs), name="snapshot", daemon=True
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
        self.wait()
        self.cost_s = self._spent_s + self._waited_s + self._copied_s * _BANDWIDTH
        self.stall_s += self._waited_s
        began = time.perf_counter()
        try:
            job = self._planned(step, extra, pin, owed)
        except StateError:
            raise  # no checkpoint can hold it: better now than after hours without one
        except Exception as error:
            self.problem = f"no snapshots: {error!r}"
            return
        if job is None:
            self.left_out = step
            self.segment.skip(step)
            return
        assert self._copier is not None
        self._job = job
        if self._copier.overlaps:
            self._idle.clear()
            self._copier.mark()
            self._jobs.put(job)
        else:
            self.work(job)
        self._waited_s, self._spent_s = 0.0, time.perf_counter() - began
        self.stall_s += self._spent_s

    def _planned(self, step: int, extra: Any, pin: bool, owed: bool) -> _Job | None:
        of_model = None if self._walked is None else self._walked.state_dict
        shared = capture(self._parts, step, extra, self._packer, of_model)
        generators = rng.capture()
        layout, image = self._layout(shared), self._image
        self.unplanned = layout is None
        if layout is None:
            return None
        if image is None or image.specs is not shared.specs or image.layout is not layout:
            image = Image(shared, layout, self._place.rank, self._packer.steady)
            self._image = image
            self._copier = copier_for(shared.tensors.values(), self.spare)
        image.stage(shared)
        own = capture_own(self._place.rank, shared, self._parts)
        own = replace(own, tensors={name: tensor.clone() for name, tensor in own.tensors.items()})
        later = self._packer.steady if self._copier is not None and self._copier.overlaps else ()
        tensors = (shared.tensors[name] for name in later)
        watched = [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]
        return _Job(step, pin, owed, image, shared.tree, generators, own, watched)

    def _layout(self, shared: Packed) -> Layout | None:
        if self._layouts is not None:
            return self._layouts.known(shared, self._place.rank, self._place.world_size)
        image = self._image
        if image is not None and image.specs is shared.specs:
            return image.layout
        return plan(shared.specs, self._place.world_size, shared.led)

    def _steadiness(self) -> Steadiness:
        steady = steadiness(self._parts)
        return lambda path, tensor: tensor.data_ptr() not in self._unsteady and steady(path, tensor)

    def forget(self) -> None:
        """The next snapshot is planned anew."""
        self._packer.forget()

    def gate(self) -> None:
        """Waits until parameters and optimizer state may be changed."""
        if self._copier is not None and not self._idle.is_set():
            began = time.perf_counter()
            if self._job is not None and self._job.moved is None:
                self._job.moved = self._job.changed()  # the step that begins now changes all of them
            self._copier.gate()
            self._waited_s += time.perf_counter() - began

    def wait(self) -> None:
        """Waits until the last snapshot, if there was one, is committed."""
        if not self._idle.is_set():
            began = time.perf_counter()
            self._idle.wait()
            self._waited_s += time.perf_counter() - began

    def close(self) -> None:
        """No snapshot is being copied, and none will be. Existing snapshots stay."""
        self._hook.remove()
        self._finish()
        self.segment.close()

    def work(self, job: _Job) -> None:
        """`job` is done; called by the copying thread, if there is one."""
        began = time.thread_time()
        try:
            self._write(job)
        except Removed as error:
            self.removed, self.problem = True, str(error)
        except OSError as error:
            self.problem = self._room() if error.errno == errno.ENOSPC else f"no snapshots: {error}"
        except Exception as error:
            # Any exception: if the copying thread died of it, training would wait for it for ever.
            self.problem = f"no snapshots: {error!r}"
        finally:
            if self._copier is not None and self._copier.overlaps:
                self._copied_s = time.thread_time() - began
                self._copier.finish()
                self._idle.set()

    def _write(self, job: _Job) -> None:
        own = capture_rank(self._place.rank, job.generators, job.own)
        header = job.image.header(own)
        sidecar = self._sidecar(job) if self._place.rank == 0 else b""
        payload = job.image.payload(header, own)
        self._needed = payload
        buffer = self._begin(job, payload + len(sidecar))
        if buffer is None or self._copier is None:
            self.left_out = job.step
            self.segment.skip(job.step)
            return
        job.image.fill(buffer, header, own, sidecar, self._copier.copy)
        if changed := job.changed() if job.moved is None else job.moved:
            # It has values of after its step. From now on these are copied before training goes on.
            self._unsteady |= changed
            self._packer.forget()
            self.segment.skip(job.step)
            return
        self.segment.commit(buffer, job.step, payload, len(sidecar))

    def _begin(self, job: _Job, size: int) -> Buffer | None:
        """A buffer, or None. An owed snapshot waits for one, but not again after a wait in vain."""
        until = time.monotonic() + (_LATE_S if job.owed and self._patient else 0.0)
        while (buffer := self.segment.begin(size, job.step if job.pin else None)) is None:
            if time.monotonic() >= until:
                break
            time.sleep(0.001)
        self._patient = buffer is not None or (self._patient and not job.owed)
        return buffer

    def _room(self) -> str:
        needed = 3 * self._place.world_size * self._needed / 2**20 + 16
        return (
            f"no snapshots: {self._place.folder.parent} is too small for them, they need {needed:.0f} MB there; "
            f"in Docker give --shm-size={math.ceil(needed / 64) * 64}m"
        )

    def _sidecar(self, job: _Job) -> bytes:
        """The fields of a manifest that are not in the files."""
        known, text = self._table
        if known is not job.image.layout:
            text = encode(table(job.image.layout))
            self._table = (job.image.layout, text)
        about = {"run": self._place.run, "attempt": self._place.attempt, "torch": torch.__version__, "state": job.tree}
        return encode(about)[:-1] + b',"tensors":' + text + b"}"


def opened(place: Place, parts: Mapping[str, Stateful], led: Led, layouts: Layouts) -> tuple[Memory | None, str | None]:
    """The memory tier of this rank, or why it cannot have one."""
    try:
        return Memory(place, parts, led=led, layouts=layouts), None
    except (OSError, ValueError) as error:
        return None, str(error)


def _serve(memory: weakref.ref[Memory], jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        if (itself := memory()) is not None:
            itself.work(job)
        # Otherwise this frame would keep the last job's tensors, and the memory tier, alive.
        del job, itself


def _finish(jobs: queue.SimpleQueue[_Job | None], thread: threading.Thread) -> None:
    jobs.put(None)
    if thread is not threading.current_thread():
        thread.join()
