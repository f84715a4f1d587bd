"""What an adapter is. Others add theirs by an entry point of the group `supervise.adapters` that leads to an instance.

    class Mine:
        name = "mine"                                    # as in --adapter mine
        def knows(self, program): ...                    # whether the program is one of its kind
        def plan(self, case): ...                        # what it is to be told; None: nothing can be done here
        hooks = {"package.module": hook}                 # optional, see below

`knows` and `plan` are pure: they see values and return values, in the supervisor, and import nothing but
supervise.adapters. A hook runs in every rank, in all attempts, right after the framework's module was imported:
`hook(module, orders)`. It says what the program uses (`orders.uses("mine")`), and, where there are `orders.offers`,
hands the first that fits to the framework. Then `plan` returns a Plan with `offers` in place of `words`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from .program import Program


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file or folder that this run has saved, which is whole and still there."""

    path: str
    """Absolute."""
    step: int = -1
    """The true step of the run, or -1 where that is not known."""
    kind: str = "file"
    """`file`; or what kind of folder: huggingface, accelerate, dcp, …"""
    number: int = -1
    """The number that its name bears: of a step, an epoch, an iteration; -1 for none."""
    resumable: bool | None = None
    """Whether an optimizer's state is in it; None where nobody has seen what is."""
    names: tuple[str, ...] = ()
    """What a folder holds."""


@dataclass(frozen=True, slots=True)
class Case:
    """A program that is about to be started again."""

    program: Program
    command: tuple[str, ...]
    """The script or module, and its arguments, as the user has given them."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """Those that it may go on from, the newest first."""
    world: int = 1
    """Its ranks now."""

    @property
    def arguments(self) -> tuple[str, ...]:
        return self.command[1:]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the program is told, or why it is told nothing."""

    say: str
    """One line for people: `--resume=/out/ckpt.pt`, or why not."""
    words: tuple[str, ...] = ()
    """What its command line gets."""
    after: tuple[str, ...] = ()
    """The subcommands behind which they go; else they go right behind the script."""
    last: bool = False
    """They go to the end instead."""
    offers: tuple[str, ...] = ()
    """What the adapter's hook in the ranks may hand to the framework, the best first."""
    checkpoint: Checkpoint | None = None
    """The one that it is to go on from."""
    refused: bool = False
    """Nothing is told: `say` says why."""
    warn: bool = False
    """It will go on, but not quite as if nothing had happened: `say` says how."""


def refusal(why: str) -> Plan:
    return Plan(why, refused=True)


class Adapter(Protocol):
    """As above."""

    @property
    def name(self) -> str: ...
    def knows(self, program: Program) -> bool: ...
    def plan(self, case: Case) -> Plan | None: ...


@dataclass(frozen=True, slots=True)
class Orders:
    """What a hook in a rank is given."""

    offers: tuple[str, ...] = ()
    """The checkpoints that may be handed to the framework, the best first; none in a first attempt."""
    uses: Callable[[str], None] = lambda name: None
    """Says that the program uses the framework of that name."""
    fact: Callable[[str, str], None] = lambda name, value: None
    """Keeps a fact for plan(), as `program.facts`."""


Hook = Callable[[ModuleType, Orders], None]
Hooks = Mapping[str, Hook]
