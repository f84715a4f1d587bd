"""The state machine of a leader: a node that is lost, the end of an attempt over nodes, and the wait for the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from supervisor.core import machine
from supervisor.core.actions import Action, Emit, End, Launch, Reach, Send
from supervisor.core.machine import Mode, State
from supervisor.core.model import Cause, Exit, Observation, Policy, Raised, RankView, Verdict
from supervisor.core.nodes.nodes import Nodes, NodeView
from supervisor.core.poll_interval import CALM, poll_interval
from trainer.rundir.codes import Phase

POLICY = Policy()
TRAINS = State(Mode.RUNNING, 2, stepped=True, step=5, launched_at=10.0)
KILL = Send("KILL", Reach.ALL)
OWN = NodeView(0, "a", leads=True, member=True, ready=True)
B = NodeView(1, "b", member=True, since=99.9)


def nodes(*views: NodeView, least: int = 2, most: int = 2) -> Nodes:
    return Nodes(least, most, 30.0, (OWN, *views))


def life(state: State, *looks: tuple[float, dict[str, Any]]) -> tuple[State, list[list[Action]]]:
    done = []
    for now, seen in looks:
        state, actions = machine.step(POLICY, state, Observation(now, **seen))
        done.append(actions)
    return state, done


def verdict_of(actions: list[Action]) -> dict[str, Any]:
    (event,) = [a for a in actions if isinstance(a, Emit) and a.event == "verdict"]
    return event.fields


def test_a_lost_node_ends_the_attempt() -> None:
    """With its name and the evidence; the others are killed, and the next attempt goes on with a spare."""
    lost = replace(B, over=True, lost="nothing was heard of it for 1.3 s", since=98.7)
    state, (actions,) = life(TRAINS, (100.0, {"nodes": nodes(lost), "alive": (7,)}))
    told = verdict_of(actions)
    assert (told["cause"], told["node"], told["rank"], told["detect_s"]) == ("node_lost", 1, None, 1.3)
    assert told["reason"] == "node 1 (b) is lost at step 5: nothing was heard of it for 1.3 s" and KILL in actions
    spare = replace(B, node=2, host="c", member=False, ready=True)
    with_spare = {"nodes": nodes(lost, spare)}
    state, done = life(state, (100.1, with_spare), (100.1, with_spare))
    assert done[1] == [Launch(3, nodes=(0, 2))]
    (scheduled,) = [a for a in done[0] if isinstance(a, Emit) and a.event == "relaunch_scheduled"]
    assert scheduled.fields["delay_s"] == 0.0 and not scheduled.fields["counted"]


def test_a_member_that_has_nothing_left() -> None:
    """Its lease ran out, or its supervisor has begun anew."""
    out = replace(B, over=True, ready=True)
    _, (actions,) = life(TRAINS, (100.0, {"nodes": nodes(out)}))
    assert verdict_of(actions)["cause"] == "node_lost" and "is out at step 5" in verdict_of(actions)["reason"]


def test_a_victim_waits_for_the_nodes_verdict() -> None:
    """Whoever misses a peer on a node in doubt has not failed by itself, even if its launcher has ended."""
    exits = (Exit(0, 1, 100.0), Exit(None, 1, 100.05))
    error = Raised(
        0, "RuntimeError", "Connection closed by peer [10.0.0.2]:1", "", 99.98, kinds=("RuntimeError", "Exception")
    )
    seen = {"exits": exits, "raised": (error,)}
    silent = {**seen, "nodes": nodes(replace(B, silent=True))}
    state, done = life(TRAINS, (100.1, silent), (100.9, silent))
    assert done == [[], []] and state.suspects
    lost = replace(B, over=True, lost="its connection is closed, and its rank is gone", since=99.9)
    _, (actions,) = life(state, (101.0, {**seen, "nodes": nodes(lost)}))
    assert verdict_of(actions)["cause"] == "node_lost"
    _, (actions,) = life(state, (101.0, {**seen, "nodes": nodes(B)}))
    assert verdict_of(actions)["rank"] == 0, "the node is well, so it was something else"


def test_what_failed_before_the_node_did() -> None:
    """Is the cause: the clock decides."""
    lost = replace(B, over=True, lost="nothing was heard of it", since=99.9)
    _, (actions,) = life(TRAINS, (100.0, {"nodes": nodes(lost), "exits": (Exit(0, -11, 99.5),)}))
    assert verdict_of(actions)["cause"] == "segfault"
    _, (actions,) = life(TRAINS, (100.0, {"nodes": nodes(lost), "exits": (Exit(0, -11, 99.95),)}))
    assert verdict_of(actions)["cause"] == "node_lost"


def test_silent_ranks_of_a_node_in_doubt_are_no_hang() -> None:
    """Nobody is asked for stacks, and nobody is overdue, while the node may be lost."""
    ranks = tuple(RankView(rank, 5, Phase.TRAIN, 100.0, announces=True) for rank in (0, 1))
    doubt = {"ranks": ranks, "steps": {0: 5, 1: 5}, "nodes": nodes(replace(B, silent=True))}
    _, done = life(TRAINS, *[(100.0 + 0.4 * n, doubt) for n in range(30)])
    assert not any(done)


def test_no_attempt_beside_a_member() -> None:
    """The end waits for each member: over, or lost when its lease is. A silent one is not stuck; one that tells of
    living processes for 20 seconds is."""
    stops = replace(TRAINS, mode=Mode.STOPPING, verdict=Verdict(Cause.KILLED, "because", 100.0, 0), killed_at=100.0)
    silent = {"nodes": nodes(replace(B, silent=True))}
    state, done = life(stops, (100.1, silent), (150.0, silent))
    assert done == [[KILL], [KILL]] and state.mode is Mode.STOPPING
    _, ((end,),) = life(stops, (120.0, {"nodes": nodes(B)}))
    assert isinstance(end, End) and end.exit_code == 106 and "a process is alive on node 1 (b) 20 s" in end.reason
    _, ((end,),) = life(stops, (120.0, {"nodes": nodes(B), "alive": (7,)}))
    assert isinstance(end, End) and "pid 7 is alive on node 1 (b) 20 s" in end.reason
    state, _ = life(stops, (101.0, {"nodes": nodes(replace(B, over=True))}))
    assert state.mode is Mode.BACKOFF


def test_the_first_attempt_gathers() -> None:
    """All that it may have, for the whole wait; then what is enough; or the end, safe to launch again."""
    first = machine.begin(-1, machine.History())
    here = replace(B, member=False, ready=True)
    state, done = life(first, (100.0, {"nodes": nodes()}), (129.9, {"nodes": nodes()}))
    assert [[a.event for a in actions if isinstance(a, Emit)] for actions in done] == [["nodes_awaited"], []]
    assert poll_interval(state, 129.9) == CALM
    assert life(state, (129.9, {"nodes": nodes(here)}))[1] == [[Launch(0, nodes=(0, 1))]]
    _, ((end,),) = life(state, (130.0, {"nodes": nodes()}))
    assert isinstance(end, End) and end.exit_code == 75 and "1 of 2 nodes is there after 30 s" in end.reason
    fewer = {"nodes": nodes(here, least=1, most=3)}
    state, done = life(first, (100.0, fewer), (129.9, fewer), (130.0, fewer))
    assert done[1:] == [[], [Launch(0, nodes=(0, 1))]]


def test_a_later_attempt_does_not_wait_for_more() -> None:
    """It goes on at once with what is enough; but never beside a member of the last attempt."""
    waits = State(Mode.BACKOFF, 2, verdict=Verdict(Cause.NODE_LOST, "because", 99.0))
    assert life(waits, (100.0, {"nodes": nodes(least=1)}))[1] == [[Launch(3, nodes=(0,))]]
    unfenced = {"nodes": nodes(replace(B, silent=True), least=1)}
    state, done = life(waits, (100.0, unfenced), (140.0, unfenced))
    assert state.mode is Mode.BACKOFF and done[1] == []
    assert life(replace(waits, attempt=2), (100.0, {"retry": 3, **unfenced}))[0].mode is Mode.BACKOFF


def test_one_node_needs_nobody() -> None:
    """Without nodes all is as ever."""
    assert life(State(Mode.BACKOFF, 2, next_at=100.0), (100.0, {}))[1] == [[Launch(3)]]
