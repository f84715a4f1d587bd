"""The work of a node that follows, as its leader orders it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from supervisor.core.actions import Reach
from supervisor.nodes.follow.duty import Duty
from supervisor.process.reaper import Reaper
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir


def test_a_signal_that_is_told_again(tmp_path: Path) -> None:
    """A leader that does not know whether it was heard repeats it: the ranks have it once. A KILL is repeated here."""
    spec, sent = Spec("r", "m", ("x.py",), False, 1, "/"), list[tuple[str, Reach]]()
    duty = Duty(RunDir(tmp_path), spec, {}, Reaper(), lambda message: None, {}, set())
    limb = SimpleNamespace(number=3, send=lambda name, reach, now: sent.append((name, reach)))
    duty.limb, duty.busy = limb, True  # type: ignore[assignment]
    orders = [("TERM", Reach.RANKS), ("TERM", Reach.RANKS), ("TERM", Reach.ALL), ("TERM", Reach.ALL)]
    orders += [("KILL", Reach.ALL)] * 2

    assert all(duty.signal(3, name, reach, 0.0) for name, reach in orders)
    assert sent == [orders[0], orders[2], *orders[4:]]
    assert not duty.signal(2, "TERM", Reach.RANKS, 0.0)
