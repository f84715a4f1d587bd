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
    take what is there, if it is enough. Nodes that cannot call each other do not train together, so none begins before
    that is known. On one node there is nothing to wait for.
    """
    if nodes is None:
        return Gathered(())
    late = now >= since + nodes.wait
    chosen = nodes.chosen()
    if len(chosen) >= (nodes.most if first and not late else nodes.least):
        if nodes.unfenced():
            # A lease ends by itself, so this wait does, too.
            return _waits(nodes)
        # A call is answered at once, or has failed within seconds.
        return Gathered() if nodes.unknown(chosen) else Gathered(chosen)
    return Gathered(end=_too_few(nodes, first)) if late else _waits(nodes)


def _too_few(nodes: Nodes, first: bool) -> End:
    """The end of a wait in vain. A network in which no attempt can `first` begin must be mended by a person."""
    why = f"{nodes.missing()} after {nodes.wait:.0f} s (--node-wait)"
    if first and nodes.apart():
        return End(ExitCode.USAGE, RunState.FAILED, f"{why}; the ranks of all nodes must reach each other at any port")
    return End(ExitCode.PREEMPTED, RunState.PREEMPTED, f"{why}; safe to launch again")


def _waits(nodes: Nodes) -> Gathered:
    """The wait, and its event."""
    unfenced = [view.node for view in nodes.unfenced()]
    fields = {"nodes": list(nodes.chosen()), "least": nodes.least, "most": nodes.most, "unfenced": unfenced}
    return Gathered(told=(Emit("nodes_awaited", fields={**fields, "wait_s": nodes.wait, "text": nodes.missing()}),))
