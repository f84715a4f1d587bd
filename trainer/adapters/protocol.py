"""The protocol of adapters. Third parties add an adapter by an entry point of the group `supervise.adapters` that leads
to an instance.

    class Mine:
        name = "mine"                                    # as in --adapter mine
        def knows(self, program): ...                    # whether the program is one of its kind
        def plan(self, case): ...                        # the orders for it; None: nothing can be done here
        hooks = {"package.module": hook}                 # optional, see below

`knows` and `plan` are pure. They run in the supervisor, take values and return values, and import nothing but
supervise.adapters. A hook runs in every rank, in all attempts, right after the framework's module was imported:
`hook(module, orders)`. It reports what the program uses (`orders.uses("mine")`). If there are `orders.offers`, it hands
the first that fits to the framework. Then `plan` returns a Plan with `offers` in place of `words`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Protocol

from ..rundir.codes import Doing
from .program import Program


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file or folder that this run has saved. It is whole and still there."""

    path: str
    """The absolute path."""
    step: int = -1
    """The true step of the run, or -1 if not known."""
    kind: str = "file"
    """`file`, or the kind of folder: `folder` for one of the program's own, huggingface, accelerate, dcp, …"""
    number: int = -1
    """The number in its name: of a step, an epoch, an iteration. -1 if there is none."""
    resumable: bool | None = None
    """Whether it contains an optimizer's state, or if no save of the run does, whether it counts steps. None if nobody
    has looked inside; where another save of the run is surely one to resume from, it is False then."""
    names: tuple[str, ...] = ()
    """The content of a folder."""
    training: int = 0
    """The number of the framework's training that has saved it, of all that the program calls. 0: not known."""


@dataclass(frozen=True, slots=True)
class Case:
    """A program that is about to be started again."""

    program: Program
    command: tuple[str, ...]
    """The script or module, and its arguments, as the user gave them."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """Checkpoints that it may resume from, the newest first."""
    world: int = 1
    """Its number of ranks now, on all nodes."""

    @property
    def arguments(self) -> tuple[str, ...]:
        return self.command[1:]


@dataclass(frozen=True, slots=True)
class Plan:
    """The orders for the program, or the reason for none."""

    say: str
    """One line for people: `--resume=/out/ckpt.pt`, or the reason for no orders."""
    words: tuple[str, ...] = ()
    """Words that are added to its command line."""
    after: tuple[str, ...] = ()
    """The words go behind these subcommands. Without any, they go right behind the script."""
    last: bool = False
    """The words go to the end instead."""
    offers: tuple[str, ...] = ()
    """Checkpoints that the adapter's hook in the ranks may hand to the framework, the best first."""
    checkpoint: Checkpoint | None = None
    """The checkpoint to resume from."""
    refused: bool = False
    """The program gets no orders: `say` says why."""
    warn: bool = False
    """The program will resume, but not quite as if nothing had happened: `say` says how."""


def refusal(why: str) -> Plan:
    return Plan(why, refused=True)


class Adapter(Protocol):
    """An adapter, as described above."""

    @property
    def name(self) -> str: ...
    def knows(self, program: Program) -> bool: ...
    def plan(self, case: Case) -> Plan | None: ...


@dataclass(frozen=True, slots=True)
class Orders:
    """The arguments of a hook in a rank."""

    offers: tuple[str, ...] = ()
    """Checkpoints that may be handed to the framework, the best first. None in a first attempt."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """The facts that hooks have kept in an earlier attempt."""
    trainings: Mapping[str, int] = field(default_factory=dict)
    """By offer: the number of the training that has saved it (see `begins`), if that is known."""
    uses: Callable[[str], None] = lambda name: None
    """Reports that the program uses the framework of that name."""
    fact: Callable[[str, str], None] = lambda name, value: None
    """Keeps a fact for plan(), as `program.facts`."""
    total: Callable[[int], None] = lambda steps: None
    """Tells people the number of steps that the program will have done at its end."""
    loss: Callable[[float], None] = lambda loss: None
    """Tells people the loss of the last step."""
    doing: Callable[[Doing], None] = lambda doing: None
    """Tells people what takes long now. Doing.NONE: it is over."""
    begins: Callable[[int], None] = lambda number: None
    """The program's training of that number begins: what is saved from now on is its own. 0: of none that is known."""
    warn: Callable[[str], object] = lambda text: None
    """Warns people, once for all ranks."""
    unseen: Callable[[], AbstractContextManager[None]] = nullcontext
    """Steps in the block are none of the run: what they change is put back."""


Hook = Callable[[ModuleType, Orders], None]
Hooks = Mapping[str, Hook]


@dataclass(frozen=True, slots=True)
class Handed:
    """An adapter of a framework whose own call gets the checkpoint, by a hook: the command line stays as it is."""

    name: str
    call: str
    """That call, for people: `Trainer.fit(ckpt_path=…)` without the value and the closing bracket."""
    hooks: Hooks
    files: str = ""
    """The names of its files, as a regular expression. Without it, its checkpoints are of the kind with its name."""
    only_resumable: bool = False
    """Whether its call fails for a checkpoint without an optimizer's state, or goes on with a new one."""

    def knows(self, program: Program) -> bool:
        return self.name in program.uses

    def plan(self, case: Case) -> Plan | None:
        found = [each for each in case.checkpoints if self._made(each)]
        if not found:
            return None
        if self.only_resumable and not (found := [each for each in found if each.resumable is not False]):
            why = "none of its checkpoints has the state of an optimizer, and without one it does not go on"
            return refusal(f"{self.call}…): {why}")
        say = f"{self.call}{found[0].path})"
        return Plan(say, offers=tuple(each.path for each in found), checkpoint=found[0])

    def _made(self, checkpoint: Checkpoint) -> bool:
        if not self.files:
            return checkpoint.kind == self.name
        return re.fullmatch(self.files, posixpath.basename(checkpoint.path)) is not None
