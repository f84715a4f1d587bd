"""Checkpoints for any training loop, in five lines.

    ckpt = Checkpointer(model=model, optimizer=optimizer, scaler=scaler)
    for step in range(ckpt.restore(), steps):
        ...
        ckpt.step(step + 1)
    ckpt.close()

The signal to stop only sets a flag. The ranks agree on it by a collective between two steps, so all save the same step.
"""

from __future__ import annotations

import math
import operator
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..rank.progress import progress
from ..rundir.codes import ExitCode, Phase
from ..rundir.environment import supervised
from ..rundir.layout import newest_checkpoint
from ..rundir.machine.shm import segment_here
from . import options
from .checks.alone import claim
from .checks.looks import Looks
from .checks.refusals import draws_anew, refuse, refuse_unready
from .checks.unsaved import Unsaved
from .disk.assembly import Loaded, Wanted
from .disk.commit import tidy
from .disk.peek import Peek, peek
from .disk.restore import Tiers, restore
from .disk.save import Order, save
from .errors import CheckpointError, StateError
from .group import ranks as this_group
from .guard import Guard
from .interval import Interval, Stalls, passed, stalled
from .losses import Losses, number
from .memory.tier import Tier, Wish
from .memory.tiered import Tiered
from .partly import load
from .preemption import StopFlag
from .put_back import draw_on, known, put_back
from .replicas import Replicas
from .sharded import stages
from .sharded.places import Places
from .sharded.slices import Shard, Slices
from .source import Extra, Source
from .standby.here import Here
from .standby.lending import Lending
from .state import buckets, several
from .state.gradients import Gradients
from .state.packing import Packed
from .state.per_rank import OnResize
from .state.state import Stateful, present


class Checkpointer(Here, Losses, Tiered, Looks):
    """Saves and restores the given parts. Every rank makes one, after init_process_group if there is a group.

    `model`, `optimizer`, `scheduler` and `scaler` are one object each, or a mapping of names to several (a GAN has
    model={"generator": g, "discriminator": d}). `ema` is an average of the model: short for
    model={"model": model, "ema": ema}.

    `directory` is by default the run's under a supervisor, else ./checkpoints. `every` is a number of steps (each such
    step is then on disk, and `keep` of them are kept), "auto" (see Interval), or None: only when asked to stop and at
    the end. `extra` is a dict of numbers, text, tensors and dataclasses, or a function that returns one. After
    restore(), `.extra` holds the stored one. What is not the same on every rank is marked in it: PerRank(value).

    `data` and marked values are each rank's own, and come back on the rank of the same number. Another number of ranks
    is a CheckpointMismatch, unless the object has `reshard(states, rank, world_size)`, which returns a rank's state, or
    with on_resize="reset": then they keep the state that they have. `seed` sets the generators of a rank that the
    checkpoint does not have. `seal` is called on rank 0 before each commit of this process.

    With `grads`, gradients that wait for an optimizer's step (between micro-batches) are saved, too, for each rank.
    replicas="trust": the ranks' states are not compared (see Replicas).

    Under a supervisor there is a memory tier (see Memory). `snapshot_every` is a number of steps, "auto" (see Pace), or
    None for no snapshots.

    With step(done, loss=…) a step is saved only if its loss is finite on all ranks; else NotFinite is raised on every
    rank. A supervisor then goes back to an older checkpoint, and the data in between is skipped. For this, a loop uses
    data_step(step) as the index of its data. A loop with an iterator finds the skipped windows in `skip`. `spike` turns
    on the same rule for a loss that jumps (see guard.is_spike).

    park=True: a standby may run the program up to restore() and wait there. It first calls `warm_up`, which makes a
    step; what that changes is put back, but not the place in the data.

    The restored state is exact to the bit, and so is the next step: the order in which DDP sums up gradients is part of
    the state (see Buckets). Make DDP before restore(). StateError if it cannot be restored. A DTensor (FSDP2) comes
    back as what each rank has of it now, on any number of ranks. `shard_spec` declares slices made by hand (see Shard),
    model=PerRank(model) stages of a pipeline; those whose tensors have other names on other ranks need no mark.
    """

    _of_rank_0: frozenset[str] = frozenset()  # parts that are rank 0's by design, and not compared
    _announces = True  # its loop reports what it does between two steps (see Progress)
    load = staticmethod(load)

    def __init__(
        self,
        *,
        model: options.One[nn.Module | Stateful] = None,
        optimizer: options.One[Stateful] = None,
        scaler: options.One[Stateful] = None,
        scheduler: options.One[Stateful] = None,
        ema: nn.Module | Stateful | None = None,
        data: Stateful | None = None,
        extra: Extra = None,
        directory: str | Path | None = None,
        every: options.Every = "auto",
        snapshot_every: options.Every = "auto",
        keep: int = 3,
        resume: str | None = None,
        seed: int = 0,
        seal: Callable[[], None] = lambda: None,
        spike: float | None = None,
        on_resize: OnResize = "refuse",
        grads: bool = False,
        replicas: options.Compared = "check",
        shard_spec: Mapping[str, Shard] | None = None,
        park: bool = False,
        warm_up: Callable[[], object] | None = None,
    ) -> None:
        here = supervised()
        self._ranks, self._guard, self._extra = this_group(), Guard(spike), extra
        self._replicas = Replicas(self._ranks, self._of_rank_0, options.checked_replicas(replicas) == "trust")
        self._slices = Slices(shard_spec)
        model = several.with_ema(model, ema)
        self._have(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, data=data, grads=grads)
        # The program may change its current folder.
        self.directory = Path(directory or (here.run.checkpoints if here else "checkpoints")).absolute()
        self._folder, self._went_on = self.directory.resolve(), False
        self.extra: dict[str, Any] = {}
        self._every = options.checked_every(every, "every")
        self._snapshot_every = options.checked_every(snapshot_every, "snapshot_every")
        self._keep, self._seal = options.checked_keep(keep), seal
        self._seed, self._on_resize = seed, options.checked_on_resize(on_resize)
        self._waits(resume, park, warm_up)
        # Only a supervisor turns snapshots into checkpoints, and removes the snapshots at the end.
        at_home = here is not None and self.directory == here.run.checkpoints.absolute()
        self._segment = segment_here() if at_home and self._snapshot_every else None
        self._tier: Tier | None = None
        self._interval = Interval()
        asked = (("checkpoints", self._every), ("snapshots", self._snapshot_every))
        self._stalls = {what: Stalls(what, n) for what, n in asked if isinstance(n, int)}
        self._done, self._saved, self._closed = 0, -1, False
        self._unfinished = False
        """Whether the last step() has raised."""
        self._problem: str | None = None
        self._stop = StopFlag(signal.SIGTERM)

    def peek(self) -> Peek | None:
        """What restore() would go on from; None if there is nothing. Nothing is changed. Each rank looks by itself."""
        return peek(
            Tiers(self.directory, self._segment, self._run, self._rollback, self._home), self.resume, self._ranks.rank
        )

    def restore(self, partial: bool = False) -> int:
        """The number of steps that are done. Every part now has the state of the newest good checkpoint; without one it
        is unchanged, at step 0. NoUsableCheckpoint or CheckpointMismatch, the same on every rank; then nothing was
        changed. `partial`: what fits by name and shape is restored, and a warning tells of the rest. StateError if no
        supervisor is there and another program has restored in this folder and not closed."""
        refuse_unready(self._parts.get("model"))
        self._slices.learn(self._parts, self._ranks)
        stages.learn(self._parts, self._ranks, self._notices.log)
        self._wait()
        self._take_folder()
        fresh = self._capture()[0]
        if sentence := draws_anew(self._parts.get("data")):
            self._notices.say(sentence)
        places = Places(self._parts, fresh, self._slices)
        if (loaded := self._find(places, None if partial else self._lending(fresh))) is not None:
            self._put_back(loaded, fresh, partial)
            self._apply_own(loaded)
        return self._reached(self._go_on(loaded), loaded)

    def _have(self, **parts: Any) -> None:
        """From now on these are its parts. StateError for one that cannot be saved."""
        parts, marked = stages.unmarked(parts)
        refuse(parts)
        self._buckets = buckets.of(parts.get("model"), self._ranks.world_size, parts.get("optimizer"))
        there = present(**parts, guard=self._guard, replicas=self._replicas, ddp=self._buckets)
        self._parts = stages.set_apart(there, marked)
        self._gradients, self._unsaved = Gradients(self._parts), Unsaved(self._parts)
        self._optimizer = next(iter(several.values("optimizer", self._parts)), None)
        self._source = Source(self._parts, self._extra, self._replicas, self._slices)

    def _find(
        self, places: Places | None = None, lending: Lending | None = None, wanted: Wanted = None
    ) -> Loaded | None:
        """The newest good state, the same on every rank (of sharded tensors: `places`; of its parts: those that are
        `wanted`). No part has it yet."""
        progress().phase(Phase.RESTORE)
        self._leave_tier()  # the snapshot that is being copied is found, too
        where = self._segment, self._run, self._rollback, self._home
        tiers = Tiers(self.directory, *where, places, lending, wanted)
        return known(restore(tiers, self.resume, self._ranks, progress().disk, self._notices.bad), self.directory)

    def _put_back(self, loaded: Loaded, fresh: Packed, partial: bool = False) -> None:
        """The parts have the state `loaded`, but for generators. `fresh` was captured before."""
        where = loaded.where(self.directory)
        self.extra, told = put_back(loaded, self._parts, fresh.marked, self._ranks, self._on_resize, where, partial)
        for sentence in told:
            self._notices.say(sentence)
        if not partial:  # else each rank may have kept other values
            self._replicas.restored(loaded.manifest.step, fresh)

    def _go_on(self, loaded: Loaded | None, start: int = 0) -> int:
        """The run goes on from `loaded`, which the parts have, or else from the parts as they are, at step `start`."""
        self._done = start if loaded is None else loaded.manifest.step
        self._saved = self._done if loaded is not None and loaded.source == "disk" else -1
        self._pass_over(loaded, self._notices)
        self._interval.since = time.monotonic()
        progress().resume_at(self._done)
        self._went_on, self._unfinished, self._gradients.ahead = True, False, False
        self._record(self._done)
        self._open_tier()
        self._notices.resumed(self._done, loaded.source if loaded else "framework" if start else "start")
        progress().phase(Phase.FIRST_STEP)
        return self._done

    def wish(self) -> Wish:
        """The wish of this rank alone. A loop that has its own collective in each step can send the wishes with it. It
        gives their union to check() and step(), which then need no collective."""
        due = self._every == "auto" and self._ranks.rank == 0 and self._interval.due(time.monotonic())
        spiked = self._ranks.rank == 0 and self._guard.spiked()
        compare = self._ranks.rank == 0 and self._replicas.due(time.monotonic())
        tier, safe = (self._tier.wish(due), self._tier.safe()) if self._tier else ((due, False, False), (False, False))
        layout = bool(self._tier and self._tier.unplanned)
        return Wish(self._stop.is_set, *tier, spiked, False, compare, layout, *safe)

    def step(self, done: int, agreed: Wish | None = None, loss: float | Tensor | None = None) -> None:
        """`done` steps are finished, and saved if a save was due. Under a supervisor the save is a snapshot, and
        another process makes a checkpoint of it. If any rank was asked to stop, all ranks have saved this step and
        SystemExit(75) is raised. A save that fails is noted and training goes on. `loss` is this rank's. If training
        must not go on from any rank's loss: NotFinite or LossSpike, on every rank, and nothing of this step is
        saved. StateError if `done` is less than before, or after close(). TypeError if it is no whole number."""
        done = operator.index(done)  # a numpy.int64, or a tensor, goes into no manifest
        claim(self, self._folder, self._ranks.rank, self._went_on)
        self._refuse_step(done)
        self._unfinished = True
        if agreed is None:
            broken = loss is not None and not math.isfinite(number(loss))
            agreed = Wish(*self._ranks.any(*self.wish()._replace(broken=broken)))
        self.check(done, None if loss is None else number(loss), agreed)
        due = isinstance(self._every, int) and passed(self._every, self._done, done)
        self._done, self._unfinished, self._gradients.ahead = done, False, False
        if sentence := self._buckets.learn():
            self._notices.say(sentence)
        (progress().step if self._announces else progress().counted)(done, self._optimizer)
        stop, save, _, lost = agreed[:4]
        if sentence := self._gradients.pending(stop or save or due or self._tier is not None):
            self._notices.say(sentence)
        self._look(agreed, (save or due) and self._tier is not None)
        if stop:
            self._save_or_raise("when asked to stop")
            self._notices.log(f"asked to stop: step {done} is saved in {self.directory}")
            raise SystemExit(ExitCode.PREEMPTED)
        if self._tier is not None and lost:
            self._lose_tier()
        began, snapshots_s = time.monotonic(), self._tier.stall_s if self._tier else 0.0
        if self._tier is not None:
            self._tier.step(done, agreed, due, self._source.extra)
            snapshots_s = self._tier.stall_s - snapshots_s
        elif save or due:
            self.save()
        now = time.monotonic()
        for sentence in stalled(self._stalls, now, due, now - began, snapshots_s):
            self._notices.say(sentence)

    def save(self) -> bool:
        """Whether the state after the last step() is durable now. Every rank calls it at the same step. CheckpointError
        if that step() has raised. A warning if an optimizer has stepped since: then that is in it."""
        if self._saved == self._done:
            return True
        if self._unfinished:
            raise CheckpointError(f"{self._strayed()}: what it left is the state of no step")
        if self._gradients.ahead:
            self._notices.say(
                f"an optimizer has stepped since step {self._done}, whose checkpoint has that too: call step() after "
                "the last update"
            )
        with progress().during(Phase.SAVE):
            disk = progress().disk
            compared = self._compare()
            shared, own = self._capture(compared)
            layout = self._source.layout(shared, self._ranks, compared)
            order = Order(
                self.directory, self._done, shared, own, self._run, self._attempt, self._seal, layout, self._fence
            )
            outcome = save(order, self._ranks, disk)
            led = outcome.error is None and self._ranks.rank == 0
            if led and (problem := tidy(self.directory, self._done, self._keep, disk)):
                self._notices.say(f"checkpoint {self._done} is saved, but tidying up failed: {problem}")
        self._interval.saved(time.monotonic(), outcome.seconds)
        self._problem = outcome.error
        if outcome.error is None:
            self._saved = outcome.step
        self._notices.saved(outcome, self._tier.untold() if self._tier and not outcome.existed else 0.0)
        return outcome.error is None

    def close(self) -> None:
        """The state after the last step() is saved and can be resumed. Signals are handled as before. CheckpointError
        if it could not be saved. After a step that failed (step() has raised, or anything after the optimizer has
        stepped) the state is not saved, and a warning tells it: it is of no step."""
        try:
            if self._unfinished or (self._gradients.ahead and sys.exc_info()[0] is not None):
                self._notices.say(f"{self._strayed()}; {self._older()}")
            else:
                self._save_or_raise("at the end")
            self._closed = True
        finally:
            self._stop.close()
            self._close_tier()
            self._hold = None

    def _refuse_step(self, done: int) -> None:
        if self._closed:
            raise StateError(f"step {done} comes after close(): nothing would be saved any more")
        if done < self._done:
            raise StateError(
                f"step {done} comes after step {self._done}: a step that was saved once is not saved again; count on "
                "from what restore() returns, call restore() to go back, or give another directory="
            )

    def _save_or_raise(self, when: str) -> None:
        if not self.save():
            if self._tier is not None:
                self._tier.keep(self._done, self._source.extra())
            raise CheckpointError(f"step {self._done} could not be saved {when}: {self._problem}; {self._older()}")

    def _strayed(self) -> str:
        return f"the step after step {self._done} has failed and is not saved"

    def _older(self) -> str:
        older = newest_checkpoint(self.directory)
        return f"the newest checkpoint is that of step {older}" if older >= 0 else "there is no checkpoint at all"

    def _apply_own(self, loaded: Loaded) -> None:
        if sentence := draw_on(loaded, self._ranks.rank, self._seed, loaded.where(self.directory)):
            self._notices.say(sentence)
