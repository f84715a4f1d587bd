"""The verdict when a node is lost, and the wait while one may be."""

from __future__ import annotations

from supervisor.core.model import Cause, Observation, Verdict


def in_doubt(seen: Observation) -> bool:
    """Whether a node may be lost soon. Then silent ranks, and ranks that miss others, prove nothing."""
    return seen.nodes is not None and seen.nodes.doubtful()


def judged(seen: Observation, verdict: Verdict | None, at: str, step: int) -> Verdict | None:
    """`verdict`, unless a node was lost before that failure. `at` says where the run was, at its highest `step`."""
    node = seen.nodes.failed() if seen.nodes is not None else None
    if node is None or (verdict is not None and verdict.failed_at < node.since):
        return verdict
    why = node.lost or "it has given up its part of the attempt: its lease ran out, or its supervisor began anew"
    word = "lost" if node.lost else "out"
    reason = f"{node.name} is {word} {at}: {why}"
    return Verdict(Cause.NODE_LOST, reason, seen.now, step=step, failed_at=min(node.since, seen.now), node=node.node)
