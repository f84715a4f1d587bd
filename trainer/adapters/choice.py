"""Chooses the adapter for a program, and what the program is told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from . import line, names
from .accelerate import Accelerate
from .generic import Generic
from .handed.composer import COMPOSER
from .handed.huggingface import HUGGING_FACE
from .handed.lightning import LIGHTNING
from .handed.ultralytics import ULTRALYTICS
from .hydra import pinned
from .megatron import Megatron
from .nanogpt import NanoGPT
from .protocol import Adapter, Case, Plan, refusal
from .rsl_rl import RslRl
from .torchtune import Torchtune

BUILT_IN: tuple[Adapter, ...] = (
    NanoGPT(),
    HUGGING_FACE,
    LIGHTNING,
    COMPOSER,
    ULTRALYTICS,
    Torchtune(),
    Megatron(),
    RslRl(),
    Generic(),
    Accelerate(),
)
"""In this order they are asked. The first one that has a plan is used."""
AUTO, OFF = "auto", "off"
NAMES = (AUTO, OFF, "hydra", *(each.name for each in BUILT_IN))
"""The values of --adapter, beside adapters that others have installed."""
_RESHARDS = frozenset({"dcp"})
"""Kinds of checkpoints that another number of ranks can read."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen adapter, and its plan."""

    adapter: str
    plan: Plan


def choose(case: Case, wanted: str = AUTO, others: Iterable[Adapter] = ()) -> Choice | None:
    """The choice for the program: by the adapter named `wanted`, or by the first that can serve it. `others` are asked
    before the built-in ones. None if no adapter knows the program, or there is nothing to resume from. (A hydra app
    stays in its folder.)"""
    if wanted == OFF:
        return None
    known = [each for each in (*others, *BUILT_IN) if wanted in (AUTO, each.name)]
    for adapter in known:
        try:
            plan = adapter.plan(case) if wanted == adapter.name or adapter.knows(case.program) else None
        except Exception as error:  # an adapter may be anybody's
            plan = refusal(f"the adapter has failed: {type(error).__name__}: {error}")
        if plan is not None:
            return Choice(adapter.name, _in_its_folder(case, _checked(case, plan)))
    words = pinned(case) if wanted in (AUTO, "hydra") else ()
    newest = next(iter(case.checkpoints), None)
    return Choice("hydra", Plan(words[0], words, checkpoint=newest)) if words else None


def _in_its_folder(case: Case, plan: Plan) -> Plan:
    """Makes a hydra app that is told to resume do so in its old folder."""
    words = () if plan.refused else pinned(case)
    return replace(plan, words=(*words, *plan.words), say=", ".join([plan.say, *words])) if words else plan


def _checked(case: Case, plan: Plan) -> Plan:
    """Returns `plan`, or a refusal if the plan would continue another training than the one that was begun."""
    if plan.refused:
        return plan
    program, kind = case.program, plan.checkpoint.kind if plan.checkpoint else ""
    if program.world and case.world != program.world and kind not in _RESHARDS:
        return refusal(f"it was saved by {program.world} ranks, and there are {case.world} now")
    if changed := _horizon(case):
        return refusal(f"{changed} has changed since the save: its schedule would change, too")
    if line.place(case.command, plan.after, plan.last) is None:
        return refusal(f"{' '.join(plan.after)} is not in its command line any more")
    return plan


def _horizon(case: Case) -> str | None:
    """An option that shapes a schedule, and whose value differs from that in the recorded attempt."""
    if not case.program.argv:
        return None
    for parser, option in case.program.options():
        if names.HORIZON.fullmatch(option.plain):
            then, now = (line.value(parser, option, each) for each in (case.program.argv, case.arguments))
            if then != now:
                return f"{option.names[-1]} ({then or 'not given'} then, {now or 'not given'} now)"
    return None


def edited(command: Sequence[str], plan: Plan) -> tuple[int, tuple[str, ...]]:
    """(index in `command`, words) of the insertion."""
    index = line.place(command, plan.after, plan.last)
    return (len(command), ()) if index is None else (index, plan.words)
