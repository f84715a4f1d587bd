"""Which rank stands apart, by the flight recorders of torch's process groups.

Each rank's recorder lists the collectives of each of its groups by number. A rank that has not come to a number that
most others have come to is missing there. One that called something else under that number is out of step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from supervisor.core.evidence import Odd
from supervisor.core.model import Cause, Verdict


@dataclass(frozen=True, slots=True)
class _Call:
    """One collective that a rank has called."""

    name: str
    sizes: str
    place: str

    def __str__(self) -> str:
        return self.name + (f" of {self.sizes}" if self.sizes != "[]" else "")


_Calls = Mapping[int, _Call]


def odd(traces: Mapping[int, object]) -> Odd | None:
    """The rank that stands apart in the dumps of the ranks. None if nothing shows one. For any values."""
    groups: dict[str, dict[int, _Calls]] = {}
    for rank, trace in traces.items():
        for group, calls in _groups(trace):
            groups.setdefault(group, {})[rank] = calls
    found = (_apart(calls) for calls in groups.values() if len(calls) > 1)
    return next((each for each in found if each is not None), None)


def _apart(calls: Mapping[int, _Calls]) -> Odd | None:
    last = {rank: max(numbers) for rank, numbers in calls.items()}
    behind = sorted(rank for rank in last if last[rank] < max(last.values()))
    for number in range(min(last.values()), 0, -1):
        here = {rank: numbers.get(number) for rank, numbers in calls.items()}
        if None in here.values():
            break  # The recorder keeps the newest calls only.
        kinds = Counter((call.name, call.sizes) for call in here.values() if call is not None)
        if len(kinds) > 1:
            (most, count), *rest = kinds.most_common()
            if len(calls) > 2 and count > rest[0][1]:
                rank, call = next((r, c) for r, c in here.items() if c is not None and (c.name, c.sizes) != most)
                others = next(c for c in here.values() if c is not None and (c.name, c.sizes) == most)
                return Odd(rank, f"rank {rank} called {call} as collective {number}{call.place}, the others {others}")
    if not behind or 2 * len(behind) > len(last):
        return None
    number = min(last[rank] for rank in behind) + 1
    rank = next(rank for rank in behind if last[rank] + 1 == number)
    waits = next((numbers[number] for numbers in calls.values() if number in numbers), None)
    if waits is None:
        return None
    return Odd(rank, f"rank {rank} has not come to collective {number}, {waits}, where the others are{waits.place}")


def _groups(trace: object) -> Iterator[tuple[str, _Calls]]:
    """The calls of each group in one rank's dump, by number."""
    entries = trace.get("entries") if isinstance(trace, dict) else None
    found: dict[str, dict[int, _Call]] = {}
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or entry.get("is_p2p"):
            continue
        group, number, name = entry.get("process_group"), entry.get("collective_seq_id"), entry.get("profiling_name")
        if isinstance(number, int) and isinstance(name, str) and isinstance(group, tuple | list) and group:
            call = _Call(name.rpartition(":")[2], str(entry.get("input_sizes") or [])[:80], _place(entry.get("frames")))
            found.setdefault(str(group[0]), {})[number] = call
    yield from found.items()


def _place(frames: Any) -> str:
    """`, in train (train.py:20)`: the first frame outside of torch."""
    for frame in frames if isinstance(frames, list) else ():
        if isinstance(frame, dict) and "/torch/" not in (path := str(frame.get("filename", "/torch/"))):
            return f", in {frame.get('name')} ({path.rpartition('/')[2]}:{frame.get('line')})"
    return ""


def told(verdict: Verdict, found: Odd | None) -> Verdict:
    """The verdict on ranks that waited in vain, with the rank that stands apart."""
    if found is None or verdict.cause not in (Cause.HANG, Cause.NCCL_OR_GLOO_TIMEOUT):
        return verdict
    return replace(verdict, rank=found.rank, reason=f"{verdict.reason}; by the flight recorder, {found.text}")
