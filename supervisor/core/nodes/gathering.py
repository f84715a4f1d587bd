"""The wait for nodes before an attempt: none begins while a member of the last one may still run its part."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.core.actions import Action, Emit, End
from supervisor.core.nodes.nodes import Nodes
from supervisor.core.words import RunState
from trainer.rundir.codes import ExitCode


@dataclass(frozen=True, slots=True)
class Gathered:
    """The nodes of the next attempt, or the end of the run. If neither: it waits."""

    nodes: tuple[int, ...] | None = None
    end: End | None = None
    told: tuple[Action, ...] = ()
    """What to tell when the wait begins."""


def gather(nodes: Nodes | None, first: bool, since: float, now: float) -> Gathered:
    """The nodes of an attempt that could begin since the time `since`.

    The `first` attempt of a leader waits for as many nodes as it may have: they come one after the other. Later ones
    take what is there, if it is enough. On one node there is nothing to wait for.
    """
    if nodes is None:
        return Gathered(())
    late = now >= since + nodes.wait
    chosen = nodes.chosen()
    if len(chosen) >= (nodes.most if first and not late else nodes.least):
        # A lease ends by itself, so this wait does, too.
        return _waits(nodes) if nodes.unfenced() else Gathered(chosen)
    if not late:
        return _waits(nodes)
    why = f"{nodes.missing()} after {nodes.wait:.0f} s (--node-wait); safe to launch again"
    return Gathered(end=End(ExitCode.PREEMPTED, RunState.PREEMPTED, why))


def _waits(nodes: Nodes) -> Gathered:
    """The wait, and its event."""
    unfenced = [view.node for view in nodes.unfenced()]
    fields = {"nodes": list(nodes.chosen()), "least": nodes.least, "most": nodes.most, "unfenced": unfenced}
    return Gathered(told=(Emit("nodes_awaited", fields={**fields, "wait_s": nodes.wait, "text": nodes.missing()}),))
