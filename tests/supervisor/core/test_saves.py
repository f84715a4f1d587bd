"""What the core makes of the journals: what is done, what is under way, what is torn."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.own_saves.saves import Saves, hear


def line(kind: str, n: int, path: str = "/ck.pt", step: int = 20, mono: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "n": n, "path": path, "step": step, "mono": mono, **more}


def heard(*lines: tuple[int, dict[str, Any]]) -> Saves:
    saves = Saves()
    for rank, each in lines:
        saves = hear(saves, rank, each)
    return saves


def test_begun_done_failed_torn() -> None:
    """Each save of each rank on its own; what has not ended is torn, once for each path."""
    saves = heard(
        (0, line("save_begun", 0)),
        (1, line("save_begun", 0, "/shard1.pt")),
        (0, line("save_done", 0, mono=3.0, began=1.0, size=100)),
        (0, line("save_begun", 1, step=40)),
        (0, line("save_failed", 1, step=40)),
        (0, line("save_begun", 2, step=60)),
        (1, line("save_done", 0, "/shard1.pt", mono=2.0)),
    )

    assert saves.newest is not None and (saves.newest.path, saves.newest.size, saves.newest.took) == (
        "/ck.pt",
        100,
        2.0,
    )
    assert saves.step == 20 and not saves.unplaced
    assert [(save.path, save.step) for save in saves.cut()] == [("/ck.pt", 60)]
    assert heard((0, line("save_done", 0, step=-1))).unplaced


def test_a_folder_is_whole_when_every_rank_is_done() -> None:
    """Until then neither it nor a file of it is anything to go on from; a rank that never began it counts, too."""
    folder, part = {"path": "/out/checkpoint-20", "ranks": 2}, "/out/checkpoint-20/a.pt"
    half = heard(
        (0, line("save_begun", 0, **folder)),
        (0, line("save_begun", 1, part, within=folder["path"])),
        (0, line("save_done", 1, part, within=folder["path"])),
        (0, line("save_done", 0, **folder)),
    )
    assert [each.newest.path for each in half.torn()] == [folder["path"]]
    assert half.newest is None and half.step == -1 and not half.cut()

    begun = hear(half, 1, line("save_begun", 0, **folder))
    assert begun.torn()
    whole = hear(begun, 1, line("save_done", 0, mono=5.0, **folder))
    assert not whole.torn() and whole.newest is not None and (whole.newest.path, whole.step) == (folder["path"], 20)
    # Into the same folder again, and this time one of them fails.
    again = hear(hear(whole, 0, line("save_begun", 2, **folder)), 0, line("save_failed", 2, **folder))
    assert again.torn()


def test_what_is_written_beside() -> None:
    """It is known where, and whether a kill would tear it."""
    saves = heard(
        (0, {"kind": "beside", "folder": "/out"}),
        (0, line("save_begun", 0, "/out/a.pt", beside=True)),
        (0, line("save_begun", 1, "/out/b.pt", beside=True)),
        (0, {"kind": "save_in_place", "n": 1, "path": "/out/b.pt"}),
    )
    assert saves.beside == {"/out"}
    assert [(save.path, save.beside) for save in saves.cut()] == [("/out/a.pt", True), ("/out/b.pt", False)]


garbage = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=3), st.lists(st.none()))
lines = st.dictionaries(
    st.sampled_from(["kind", "n", "path", "step", "mono", "began", "size", "ranks", "within", "folder"]),
    garbage | st.sampled_from(["save_begun", "save_done", "save_failed", "save_in_place", "beside", "load_done"]),
)


@given(st.lists(st.tuples(st.integers(0, 3), lines), max_size=30))
def test_any_garbage(told: list[tuple[int, dict[str, Any]]]) -> None:
    """It raises nothing, and makes no step up."""
    saves = heard(*told)

    assert saves.step in [-1, *(each.get("step") for _, each in told)]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 400)), max_size=500))
def test_what_is_kept_is_bounded(begun: list[tuple[int, int]]) -> None:
    """Saves that never end do not fill the memory, and those that end are forgotten but for the newest."""
    saves = heard(*((rank, line("save_begun", n, f"/{n}")) for rank, n in begun))
    assert len(saves.under_way) <= 128

    saves = heard(*((rank, line(kind, n, f"/{n}")) for rank, n in begun for kind in ("save_begun", "save_done")))
    assert not saves.under_way
