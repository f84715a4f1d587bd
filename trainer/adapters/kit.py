"""Tries an adapter without a run, for the tests of whoever writes one.

from supervise.adapters import kit
from supervise.adapters.protocol import Checkpoint

def test_mine():
    program, saved = kit.program(parser, uses={"mine"}), Checkpoint("/out/a.pt", 30)
    assert kit.relaunched(Mine(), program, "train.py --lr 1", saved) == "train.py --go-on=/out/a.pt --lr 1"
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable

from .choice import choose, edited
from .program import Option, Parser, Program
from .protocol import Adapter, Case, Checkpoint


def program(parser: argparse.ArgumentParser | None = None, uses: Iterable[str] = ()) -> Program:
    """A program that has the options of `parser`, and that uses these frameworks."""
    found = []
    for action in parser._actions if parser is not None else ():
        kind = {"_StoreTrueAction": "store_true", "_StoreFalseAction": "store_false"}.get(
            type(action).__name__, "store"
        )
        default = action.default if isinstance(action.default, str | int | float | bool) else None
        name = getattr(action.type, "__name__", "") if action.type is not None else ""
        found.append(
            Option(tuple(action.option_strings), action.dest, kind, name, default=default, help=action.help or "")
        )
    return Program((Parser("argparse", tuple(found)),) if found else (), uses=frozenset(uses), trained=True)


def relaunched(adapter: Adapter, known: Program, command: str, *checkpoints: Checkpoint, world: int = 1) -> str:
    """The command line of a relaunch. Or the first path that is offered to the adapter's hook. Or `nothing: ` and the
    reason."""
    case = Case(known, tuple(shlex.split(command)), checkpoints, world)
    choice = choose(case, adapter.name, [adapter])
    if choice is None:
        return "nothing"
    if choice.plan.refused:
        return f"nothing: {choice.plan.say}"
    if choice.plan.offers:
        return choice.plan.offers[0]
    index, words = edited(case.command, choice.plan)
    return shlex.join((*case.command[:index], *words, *case.command[index:]))
