"""Ranks on several nodes: whichever node is lost, the newest snapshot goes on, with every rank's own part."""

from __future__ import annotations

import itertools
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support import waiting
from tests.support.jobs import same
from tests.support.thread_nodes import SAVE, TAKE, Cluster, undisturbed
from tests.support.training import Here, Notes
from trainer.checkpoint.disk import flush as flushing
from trainer.checkpoint.disk.description import payload
from trainer.checkpoint.disk.restore import Tiers, load, restore
from trainer.checkpoint.disk.save import Order, save
from trainer.checkpoint.format.shard import entries_in
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.memory import snapshots, tier
from trainer.checkpoint.memory.snapshots import newest_snapshot
from trainer.checkpoint.memory.tier import Wish
from trainer.checkpoint.nodes import twins
from trainer.checkpoint.nodes.fence import Fence
from trainer.checkpoint.nodes.lineage import Lineage, went_on
from trainer.checkpoint.nodes.nodes import Nodes
from trainer.checkpoint.state.packing import pack
from trainer.checkpoint.state.state import capture_rank
from trainer.rundir.files.durable import DISK
from trainer.rundir.layout import RunDir, committed_steps, step_name


@pytest.fixture
def cluster(here: Here, tmp_path: Path) -> Cluster:
    return Cluster(here, tmp_path / "machines")


@pytest.mark.parametrize(("on", "lost"), [("aabb", "a"), ("aabbb", "b"), ("abc", "a"), ("abc", "c"), ("aabbbcc", "b")])
def test_any_one_node_is_lost(cluster: Cluster, on: str, lost: str) -> None:
    """A new machine takes its place. No step is lost, and each rank has its own part again, wherever it was kept."""
    for done in (4, 7):
        results = cluster.train(on, done)
        assert [start for start, _, _ in results] == [{4: 0, 7: 4}[done]] * len(on)
        cluster.lose(lost)
    results = cluster.train(on, 8)

    assert [start for start, _, _ in results] == [7] * len(on)
    whole = undisturbed(cluster, 8)
    assert all(same(weight, whole) for _, weight, _ in results)
    assert [own for _, _, own in results] == [[1000 * rank + step for step in range(8)] for rank in range(len(on))]


def test_what_is_kept_where(cluster: Cluster) -> None:
    """Two nodes have the whole state, each rank's part of it there is half as large as with one rank; other nodes have
    nothing whole. Nodes of which one keeps no more are emptied."""
    cluster.train("aabbc", 3)
    kept = [snapshots.find(cluster.segment(machine)) for machine in "abc"]
    assert kept[2] is None
    for found, own in ((kept[0], (0, 1)), (kept[1], (2, 3))):
        assert found is not None
        assert found.step == 3
        for rank in range(5):
            entries, _ = entries_in(payload(found, rank))
            shares = [entry.spec.bytes for entry, _ in entries if entry.key.startswith(("model/", "optimizer/"))]
            assert sum(shares) == (pytest.approx(3 * 4 * (30 * 30 + 30) / 2, abs=130) if rank in own else 0)

    cluster.train("ccaab", 4)
    assert [newest_snapshot(cluster.segment(machine)) for machine in "abc"] == [4, None, 4]
    assert [path.name for path in cluster.segment("b").iterdir()] == ["rank4", "rank4.a"]


@pytest.mark.parametrize("after", ["a", "bb", "bbaa", "caab", "d", "ccbb"])
def test_other_nodes_and_numbers_of_ranks(cluster: Cluster, after: str) -> None:
    """What is left goes on with fewer nodes, more, or in another order; those without the state get it."""
    cluster.train("aabb", 3)
    if after == "ccbb":
        cluster.lose("a")
    if after == "d":
        cluster.segment("d").parent.mkdir(parents=True)
        shutil.copytree(cluster.segment("b"), cluster.segment("d"))
    results = cluster.train(after, 5)
    assert [start for start, _, _ in results] == [3] * len(after)
    whole = undisturbed(cluster, 5)
    assert all(same(weight, whole) for _, weight, _ in results)
    if len(after) == 4:
        assert [own[:3] for _, _, own in results] == [[1000 * rank + step for step in range(3)] for rank in range(4)]
    cluster.train(after, 6)
    if after != "d":
        assert cluster.train("aabb", 7)[0][0] == 6


def test_both_keepers_are_lost(cluster: Cluster, notes: Notes) -> None:
    """The run goes on from the disk; no snapshot of the lost time is left anywhere."""
    cluster.train("abc", 6, lambda step: SAVE if step == 3 else TAKE)
    assert "error" not in flushing.flush(cluster.segment("a"), cluster.here.checkpoints, 3, 3, None)
    cluster.lose("a", "b")
    assert [start for start, _, _ in cluster.train("abc", 4)] == [3] * 3


@pytest.mark.parametrize("lost", ["a", "b"])
def test_sharded_state_on_two_nodes(cluster: Cluster, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node has the whole files of the other's ranks, too. A node is lost, then its machine for good: the slices
    come back on as many ranks as there are."""
    monkeypatch.setattr(twins, "_CHUNK", 1000)
    whole = undisturbed(cluster, 8)
    for on, until in (("aabbb", 4), ("aabbb", 6), ("aa", 7), ("bbbaa", 8)):
        results = cluster.train(on, until, sharded=True)
        assert [start for start, _, _ in results] == [{4: 0, 6: 4, 7: 6, 8: 7}[until]] * len(on)
        if until == 4:
            cluster.lose(lost)
        elif until == 6:
            cluster.lose("b")
    assert same(torch.cat([weight for _, weight, _ in results]), whole)


@pytest.mark.parametrize("machine", ["a", "b"])
def test_a_flush_on_either_node(cluster: Cluster, notes: Notes, machine: str) -> None:
    """A pinned snapshot is told to the supervisor once it has arrived, is pinned on the first node alone, and makes a
    checkpoint for all ranks; also on the other node, if its supervisor must do it."""
    cluster.train("aabb", 6, lambda step: SAVE if step == 3 else TAKE)
    assert [fields["step"] for kind, fields in notes.kept if kind == "flush_due"] == [3]
    assert [snapshots.pinned(cluster.segment(one)) for one in "ab"] == [[3], []]
    outcome = flushing.flush(cluster.segment(machine), cluster.here.checkpoints, None if machine == "b" else 3, 3, None)
    step = 3 if machine == "a" else 6
    assert outcome["step"] == step
    assert "error" not in outcome
    found = [load(cluster.here.checkpoints / step_name(step), rank) for rank in range(4)]
    assert [one.own["per_rank"] for one in found if one.own] == [
        {"extra/own": [1000 * rank + at for at in range(step)]} for rank in range(4)
    ]
    assert found[0].manifest.world_size == 4
    assert snapshots.pinned(cluster.segment("a")) == ([] if machine == "a" else [3])


def test_a_part_that_takes_long(cluster: Cluster, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long: the pinned snapshot is told once all of it has arrived, and not given up before."""
    exchange, arrives, told = twins.Twins._exchange, threading.Event(), list[int]()

    def late(self: twins.Twins, part: twins.Part) -> None:
        assert arrives.wait(60)
        exchange(self, part)

    def look(step: int) -> None:
        told.extend(step for kind in notes.kinds() if kind == "flush_due")
        if step == 5:
            arrives.set()
            waiting.until(lambda: snapshots.find(cluster.segment("a"), 3))

    monkeypatch.setattr(twins.Twins, "_exchange", late)
    monkeypatch.setattr(tier, "time", SimpleNamespace(monotonic=itertools.count(step=100.0).__next__))
    agreed = lambda step: SAVE if step == 3 else Wish()  # noqa: E731
    cluster.train("aab", 6, agreed, snapshot_every="auto", look=look)
    assert told == [6]
    assert "checkpoint_failed" not in notes.kinds() and snapshots.pinned(cluster.segment("a")) == [3]


def test_a_machine_that_stood_still_wakes_up(cluster: Cluster, notes: Notes) -> None:
    """b was given up at step 4, and a went on alone. What b has of step 5 is no part of the run, in memory or on disk,
    when it is there again; and what it would save then is refused."""
    cluster.train("aabb", 5)
    shutil.copytree(cluster.segment("b"), cluster.place / "frozen")
    shutil.rmtree(cluster.segment("b"))
    for segment in (cluster.segment("a"), cluster.place / "frozen"):
        assert newest_snapshot(segment) in (None, 5)
    # As if the snapshot of step 5 had been whole on b alone.
    snapshots.drop(cluster.segment("a"), lambda attempt, step: step > 4)
    assert cluster.train("aa", 5)[0][0] == 4

    shutil.copytree(cluster.place / "frozen", cluster.segment("b"))
    snapshots.drop(cluster.segment("a"), lambda attempt, step: attempt == 1)
    run, late = RunDir(cluster.here.run), cluster.segment("b")
    assert flushing.flush(late, cluster.here.checkpoints, 5, 3, None)["error"].startswith("no snapshot of step 5")
    results = cluster.train("aabb", 6)
    assert [start for start, _, _ in results] == [4] * 4
    assert committed_steps(run.checkpoints) == []


def test_what_is_saved_too_late(tmp_path: Path) -> None:
    """A checkpoint of an attempt that others have left behind is refused at its commit; one that was committed in the
    last moment is in nobody's way."""
    run = RunDir(tmp_path)
    run.leaders.mkdir()
    folder = run.checkpoints
    for attempt in range(2):
        run.attempt(attempt).path.mkdir(parents=True)
    late, ours = Fence(run, 0, by_ranks=True), Fence(run, 1, by_ranks=True)
    made = lambda step, fence, value: save(  # noqa: E731
        Order(folder, step, pack({"value": value}), capture_rank(0), "run", fence.attempt, fence=fence), Ranks(), DISK
    )
    assert "attempt 1 has begun, so attempt 0" in str(made(5, late, "late").error)
    assert committed_steps(folder) == []
    assert list(folder.glob(".*")) == []

    went_on(run, 1, 4)
    (run.attempts_folder / "0001").rename(run.path / "0001")  # it was not seen yet
    assert made(5, late, "late").error is None
    (run.path / "0001").rename(run.attempts_folder / "0001")
    assert not made(5, ours, "ours").existed
    assert load(folder / step_name(5), 0).shared["value"] == "ours"
    assert [path.name for path in (folder / "quarantine").iterdir() if path.is_dir()] == ["step-00000005-1"]
    assert made(5, ours, "ours").existed

    shutil.rmtree(folder)
    (run.attempts_folder / "0001").rename(run.path / "0001")
    assert made(4, late, "true").error is made(6, late, "late").error is None
    (run.path / "0001").rename(run.attempts_folder / "0001")
    tiers = Tiers(folder, home=run)
    found = restore(tiers, "auto", Ranks(), DISK)
    assert found is not None
    assert found.shared["value"] == "true"
    assert committed_steps(folder) == [4]


def test_what_was_saved_too_late_is_not_the_step_of_one_node(cluster: Cluster) -> None:
    """a goes on alone, and what b was about to commit is there when a saves that step: a's own counts."""
    cluster.train("ab", 1, lambda step: Wish(), every=1, snapshot_every=None)
    folder = cluster.here.checkpoints

    def agreed(step: int) -> Wish:
        late = Order(folder, step, pack({"value": "late"}), capture_rank(0), "run", attempt=0)
        assert save(late, Ranks(), DISK).error is None
        return Wish()

    assert cluster.train("a", 2, agreed, every=1, snapshot_every=None)[0][0] == 1
    assert load(folder / step_name(2), 0).manifest.attempt == 1
    assert (folder / "quarantine" / f"{step_name(2)}-1").is_dir()


@given(st.data())
def test_nothing_of_a_lost_node_is_ever_read(data: st.DataObject) -> None:
    """Attempts go on one after another from the newest state that counts, and left-over ranks of earlier attempts
    commit later steps at any time: what counts is always what the run itself has done."""
    truth: dict[int, int] = {}  # of each step: the attempt whose state is that of the run
    committed: list[tuple[int, int]] = []
    steps: dict[int, int] = {}
    for attempt in range(data.draw(st.integers(1, 6))):
        counts = [(step, by) for step, by in committed if not Lineage(steps).supersedes(by, step)]
        assert all(truth.get(step) == by for step, by in counts)
        # A node that was lost may have taken the newest ones along.
        start, _ = data.draw(st.sampled_from([*counts, (0, -1)]))
        steps[attempt] = start
        reached = start + data.draw(st.integers(0, 5))
        truth = {step: by for step, by in truth.items() if step <= start}
        truth.update(dict.fromkeys(range(start + 1, reached + 1), attempt))
        committed += [(step, attempt) for step in range(start + 1, reached + 1) if data.draw(st.booleans())]
        for late in range(attempt):
            # What a rank that stood still commits lies beyond the step from which the run went on without it.
            beyond = min(begun for number, begun in steps.items() if number > late)
            committed += [(beyond + 1 + more, late) for more in range(data.draw(st.integers(0, 2)))]


def test_nodes() -> None:
    """Each rank of another node has one twin on each keeper."""
    nodes = Nodes((0, 0, 1, 1, 1, 2))
    assert [nodes.twins(rank) for rank in range(6)] == [(2,), (3,), (0,), (1,), (0,), (1, 4)]
    assert [nodes.kept_by(rank) for rank in range(6)] == [(2, 4), (3, 5), (0,), (1,), (5,), ()]
    for rank in range(6):
        assert all(rank in nodes.kept_by(twin) for twin in nodes.twins(rank))
    assert not Nodes((0, 0)).several
    assert Nodes((0, 0)).twins(1) == ()
