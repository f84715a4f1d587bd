"""What nodes_simulated.py takes for a network, and for threads that do not run; and one link of it for a long time."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator

from supervisor.core.nodes.lease import BEAT, FACTOR, LONGEST, SHORTEST

LATENCY, SIGMA, TIMEOUT = 0.0002, 0.5, 0.2
PAUSE_EVERY, PAUSE_LEAST, PAUSE_ALPHA, PAUSE_MOST = 120.0, 0.02, 1.5, 5.0
RACK, OUTAGE_EVERY, OUTAGE = 16, 7200.0, 0.5
LEASES = (0.6, 0.8, 1.0, 1.5, 2.0, 3.0)


def pause(rng: random.Random) -> float:
    return min(PAUSE_MOST, PAUSE_LEAST * rng.paretovariate(PAUSE_ALPHA))


class Pauses:
    """When one thread does not run. Asked in the order of time."""

    def __init__(self, rng: random.Random, every: float = PAUSE_EVERY) -> None:
        self._rng, self._every = rng, every
        self._from = rng.expovariate(1 / every)
        self._until = self._from + pause(rng)

    def runs_at(self, now: float) -> float:
        """The first moment from `now` on when it runs."""
        while now >= self._until:
            self._from = self._until + self._rng.expovariate(1 / self._every)
            self._until = self._from + pause(self._rng)
        return self._until if now >= self._from else now


class Way:
    """One direction of a link."""

    def __init__(self, rng: random.Random, loss: float) -> None:
        self._rng, self._loss, self._last = rng, loss, 0.0

    def arrives(self, sent: float, opens: float = 0.0) -> float:
        """When what is sent at that time is there. `opens`: the link is out until then."""
        at, again = max(sent, opens), TIMEOUT
        while self._rng.random() < self._loss:
            at, again = at + again, again * 2
        self._last = max(self._last, at + self._rng.lognormvariate(math.log(LATENCY), SIGMA))
        return self._last


def waits(rng: random.Random, hours: float, loss: float) -> Iterator[float]:
    """The seconds from the sending of a beat that was answered to the next answer: a lease that is shorter ends."""
    mine, theirs = Pauses(rng), Pauses(rng)
    up, down = Way(rng, loss), Way(rng, loss)
    out_from = rng.expovariate(1 / OUTAGE_EVERY)
    out_until = out_from + rng.expovariate(1 / OUTAGE)
    now, answered = 0.0, 0.0
    answers: list[tuple[float, float]] = []
    while now < hours * 3600:
        now = mine.runs_at(now)
        if now > out_until:
            out_from = now + rng.expovariate(1 / OUTAGE_EVERY)
            out_until = out_from + rng.expovariate(1 / OUTAGE)
        opens = out_until if now >= out_from else 0.0
        answers.append((down.arrives(theirs.runs_at(up.arrives(now, opens))), now))
        now += BEAT
        while answers and answers[0][0] <= now:
            came, sent = answers.pop(0)
            yield came - answered
            answered = sent


def curve(seed: int, hours: float, loss: float) -> dict[str, float]:
    """False alarms an hour and node, for each length of a lease; and for `auto`, with the lengths that it takes. The
    answers that come together after a pause are one alarm."""
    alarms, longest, bucket = dict.fromkeys(LEASES, 0), 0.0, [0.0] * 30
    automatic, lengths, at, before = 0, list[float](), 0.0, 0.0
    for number, wait in enumerate(waits(random.Random(seed), hours, loss)):
        longest = max(longest, wait)
        for lease in LEASES:
            alarms[lease] += wait > lease >= before
        length = LONGEST if at < 60 else min(LONGEST, max(SHORTEST, FACTOR * max(bucket)))
        automatic += wait > length >= before
        at, before = at + BEAT, wait
        if number % 50 == 0:
            bucket = [*bucket[1:], 0.0]
            lengths.append(length)
        bucket[-1] = max(bucket[-1], wait)
    found: dict[str, float] = {f"{lease:g}": round(count / hours, 3) for lease, count in alarms.items()}
    return {"loss": loss, **found, "auto": round(automatic / hours, 3),
            "auto_length_s": round(statistics.mean(lengths), 2), "longest_wait_s": round(longest, 2)}  # fmt: skip
