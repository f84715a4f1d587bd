"""The lease of a follower, and the clocks of other machines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.nodes.clock import WINDOW, Offset
from supervisor.core.nodes.lease import BEAT, FACTOR, LEARNED, LONGEST, SHORTEST, Gaps, Lease


def test_a_lease_counts_from_the_beat() -> None:
    """An answer that comes late extends it by little; one that comes too late, or an old one, by nothing."""
    lease = Lease().granted(10.0, 1.0, 10.1).arm(10.1)
    assert lease.until == 11.0 and not lease.fenced(10.99) and lease.fenced(11.0)
    assert lease.granted(10.2, 1.0, 10.9).until == 11.2
    assert lease.granted(9.5, 1.0, 10.9).until == 11.0
    late = lease.granted(10.9, 1.0, 11.01)
    assert late.until == 11.0 and late.fenced(11.01), "a lease that has run out with ranks is not renewed"


def test_after_the_fence() -> None:
    """Grants count again when the ranks are gone; none may be launched without a lease."""
    lease = Lease(11.0, armed=True)
    with pytest.raises(ValueError, match="no lease"):
        lease.clear().arm(11.5)
    again = lease.clear().granted(12.0, 1.0, 12.1).arm(12.1)
    assert again.until == 13.0 and not again.fenced(12.9)
    with pytest.raises(ValueError, match="no lease"):
        Lease().arm(0.0)


def test_an_automatic_lease() -> None:
    """It is long until a minute of beats was seen, then as long as the gaps of the last minutes ask for."""
    gaps, now = Gaps(), 100.0
    assert gaps.length(now) == LONGEST
    while now < 100.0 + LEARNED:
        gaps = gaps.seen(BEAT, now)
        assert gaps.length(now) == LONGEST
        now += BEAT
    assert gaps.seen(BEAT, now).length(now) == SHORTEST
    gaps = gaps.seen(0.6, now)
    assert gaps.length(now) == FACTOR * 0.6
    assert gaps.seen(5.0, now).length(now) == LONGEST
    for _ in range(2000):
        gaps, now = gaps.seen(BEAT, now), now + BEAT
    assert gaps.length(now) == SHORTEST and len(gaps.worst) <= 30


@given(
    st.floats(-1e6, 1e6),
    st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2), st.floats(0, 1)), min_size=1, max_size=20),
)
def test_an_offset_is_within_its_doubt(true: float, trips: list[tuple[float, float, float]]) -> None:
    """Whatever the way there and back takes, the true offset is within half of the fastest trip."""
    known, now = Offset(), 50.0
    for there, back, stays in trips:
        came = now + there + true
        known = known.answered(now, came, came + stays, now + there + stays + back)
        now += 1.0
        assert abs(known.seconds - true) <= known.doubt + 1e-6 * (1 + abs(true))
    assert known.doubt <= min(there + back for there, back, _ in trips[-5:]) / 2 + 1e-6 * (1 + abs(true))


def test_an_old_answer_is_forgotten() -> None:
    """Clocks drift: a fast answer counts for half a minute."""
    known = Offset().answered(0.0, 5.0, 5.0, 0.001)
    assert known.seconds == pytest.approx(4.9995) and known.doubt == pytest.approx(0.0005)
    slow = known.answered(10.0, 15.1, 15.1, 10.2)
    assert slow.seconds == known.seconds
    assert slow.answered(WINDOW + 1, WINDOW + 6.1, WINDOW + 6.1, WINDOW + 1.2).doubt == pytest.approx(0.1)
