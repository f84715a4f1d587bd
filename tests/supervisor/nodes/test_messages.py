"""What the nodes tell each other survives the way, and what is no message is refused."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.evidence import Evidence, Memory, OomKill
from supervisor.core.model import Exit, Observation, Raised, RankView
from supervisor.core.sample import Sample, Thread, Wait
from supervisor.core.stack import Frame, Stack, Stacks
from supervisor.core.telling.news import News
from supervisor.core.telling.progress import Trained
from supervisor.group.seat import Seat
from supervisor.nodes.talk import messages as says
from supervisor.nodes.talk import probe
from supervisor.nodes.talk.probe import Probe, about, shares
from trainer.rundir.codes import Phase
from trainer.rundir.layout import RunDir
from trainer.rundir.records.gate import Release

FRAME = Frame("step", "train.py", 3)
SEEN = Observation(
    7.5,
    ranks=(RankView(2, 5, Phase.TRAIN, 7.4, True, sample=Sample(7.0, Thread((FRAME,), wait=Wait.SOCKET))),),
    steps={2: 5, 3: -1},
    exits=(Exit(None, -9, 7.1), Exit(3, None, 7.2, spared=True)),
    raised=(Raised(3, "OSError", "no", "f:1", 7.0, errno=28, because=(Raised(3, "ValueError", "why", "", 6.9),)),),
    alive=(12, 13),
    stacks=Stacks(7.3, (Stack(2, (FRAME,), "futex"),)),
    evidence=Evidence(Memory(1, (OomKill(12, "python", 100),)), {None: 11, 2: 12}, {None: ("a",), 3: ("b", "c")}),
)


@pytest.mark.parametrize(
    "message",
    [
        says.Seen(
            3, SEEN, News({2: 12}, notes=((2, {"kind": "warning", "mono": 7.0}),), trained=Trained(5, None, 7.0))
        ),
        says.Told("standby_lost", "warning", {"reason": "x"}),
        says.Asked("user", True, False),
        says.Gone(4),
    ],
)
def test_what_a_node_says(message: says.Up) -> None:
    """The leader reads the same values, with their kinds."""
    assert says.up(says.encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        says.MakeGroup("0001", Seat((2, 1), 1, "10.0.0.1", 29000)),
        says.ReleaseGroup("0001", Seat((2, 2)), Release(3, {"A": "b"}, ["x.py"], edits=[(0, 1, ["y"])])),
        says.State(3, True, False, {2: float("inf")}),
        says.Over(75, "preempted", keep=True),
    ],
)
def test_what_the_leader_says(message: says.Down) -> None:
    """A node reads the same values."""
    assert says.down(says.encode(message)) == message


@given(st.binary(max_size=200))
def test_what_is_no_message(body: bytes) -> None:
    """Any bytes are a message or a ValueError."""
    for read in (says.up, says.down, lambda body: says.as_(says.Hello, body)):
        try:
            read(body)
        except ValueError:
            continue


def test_nodes_that_differ(tmp_path: Path) -> None:
    """Another script or version is named with both values; what a node does not say is not compared."""
    (tmp_path / "a.py").write_text("1")
    here = about(("a.py",), False, str(tmp_path))
    (tmp_path / "a.py").write_text("2")
    there = about(("a.py",), False, str(tmp_path))

    assert says.differs(here, here) == says.differs(here, {"torch": here["torch"]}) == ""
    assert says.differs(here, there).startswith("the script's digest is ")
    assert says.differs({**here, "torch": "2.6.0"}, here) == f"torch is {here['torch']} there and 2.6.0 here"


@pytest.mark.parametrize(
    ("line", "version"),
    [("cuda: Optional[str] = '12.8'", "12.8"), ('cuda = "11.8"', "11.8"), ("cuda: Optional[str] = None", "none")],
)
def test_another_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, version: str) -> None:
    """What torch was built for is in its own file, in the way of each of its versions; torch is not imported. Without a
    script it is that of the run, and not compared."""
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\ndebug = False\n{line}\nhip = None\n")
    here = about((), True, str(tmp_path))
    torch = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(probe, "find_spec", lambda name: torch)
    there = about((), True, str(tmp_path))

    assert there["CUDA of torch"] == version and "the script" not in there
    said = f"CUDA of torch is {version} there and {here['CUDA of torch']} here"
    assert says.differs(here, there) == (said if version != here["CUDA of torch"] else "")


def test_a_shared_folder(tmp_path: Path) -> None:
    """A node knows the leader's folder by a file that only this leader has made."""
    (tmp_path / "run").mkdir()
    run, other = RunDir(tmp_path / "run"), RunDir(tmp_path)
    older, newer = Probe(run), Probe(run)

    assert shares(run, newer.name, newer.nonce)
    assert not shares(run, older.name, older.nonce)
    assert not shares(run, newer.name, "x") and not shares(other, newer.name, newer.nonce)
    assert not shares(other, f"run/{newer.name}", newer.nonce)

    newer.close(run)

    assert list(run.path.iterdir()) == []
