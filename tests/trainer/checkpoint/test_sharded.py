"""State of which each rank has a box: it comes back on any number of ranks, in any layout, to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as load_dcp
from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from tests.support.jobs import ROOT, environment, on_ranks, same
from tests.support.mangled import FAST, SLOW
from tests.trainer.checkpoint.test_boxes import boxes_of, partitions
from trainer.checkpoint.disk import store
from trainer.checkpoint.disk.flush import flush
from trainer.checkpoint.disk.restore import load
from trainer.checkpoint.disk.save import Order, save
from trainer.checkpoint.errors import StateError
from trainer.checkpoint.format.boxes import Box, whole
from trainer.checkpoint.format.plan import Spec
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.sharded.held import Held, box_of
from trainer.checkpoint.sharded.layouts import Layouts
from trainer.checkpoint.state import tensors
from trainer.checkpoint.state.packing import Packed, pack
from trainer.checkpoint.state.state import capture_rank
from trainer.checkpoint.transfer.safetensors_files import export_safetensors
from trainer.rundir.files.durable import DISK


def _run(place: Path, tier: str, layouts: Sequence[str]) -> list[dict[str, Any]]:
    """What each layout found, once it had restored what the one before it had left."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.sharded_runs", str(place), tier, *layouts]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _check(found: list[dict[str, Any]], tier: str, layouts: Sequence[str]) -> None:
    restored = [one for one in found if "layout" in one]
    assert [one["layout"] for one in restored] == [_plain(layout) for layout in layouts]
    for number, one in enumerate(restored):
        assert one["start"] == 3 * number
        assert not one["differ"] and not one["more"], one
        assert f"'source': '{tier if number else 'start'}'" in one["told"]


def _plain(layout: str) -> str:
    kind, world = layout.split(":")
    return f"{kind.partition('+')[0]}:{world}"


IN_MEMORY = ["2d:4", "fsdp+grows:2"]
ON_DISK = ["fsdp+rows:4", "fsdp+rows:2", "tp:2"]
AND_BACK = pytest.param(["fsdp:4", "fsdp:2", "fsdp:1", "fsdp:4"], marks=pytest.mark.long)


@pytest.mark.parametrize(
    "layouts",
    [
        IN_MEMORY,
        AND_BACK,
        pytest.param(
            ["fsdp:2", "fsdp:2", "fsdp:4", "fsdp:1", "tp:2", "tp:4", "2d:4", "2d:2", "hsdp:4", "hsdp:2", "kept:3"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_from_memory(layouts: list[str], tmp_path: Path) -> None:
    """All ranks are killed in each layout, and the next one goes on from what they had in shared memory. The last
    snapshot is flushed: without torch's help it is a checkpoint that anybody can read."""
    _check(_run(tmp_path, "memory", layouts), "memory", layouts)
    outcome = flush(tmp_path / "shm" / "supervise-m", tmp_path / "run" / "checkpoints", None, 3, None)
    assert "error" not in outcome
    _same_as_at_the_kill(tmp_path, outcome["step"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize(
    "layouts",
    [
        ON_DISK,
        AND_BACK,
        pytest.param(
            [
                "hsdp:4",
                "hsdp:2",
                "2d:4",
                "2d:4",
                "2d:2",
                "tp:4",
                "fsdp:4",
                "fsdp:3",
                "ddp:2",
                "kept:2",
                "one:1",
                "tp:2",
            ],
            marks=pytest.mark.long,
        ),
    ],
)
def test_from_disk(layouts: list[str], tmp_path: Path) -> None:
    """The same from the files, which torch's own reader puts together too."""
    layouts = [*layouts, "hsdp+drifts:4"]
    found = _run(tmp_path, "disk", layouts)
    _check(found, "disk", layouts)
    told = [one for one in found if "drifted" in one]
    assert len(told) == 4, "one of the two copies of a box is another one: every rank is told"
    assert all("model/norm.weight of ranks 0, 2 is not the same" in one["drifted"] for one in told)
    steps = [found.step for found in store.listing(tmp_path / "run" / "checkpoints", store.verify)]
    assert steps[-1] == 3 * len(layouts)
    _same_as_at_the_kill(tmp_path, steps[-1])
    path = tmp_path / "run" / "checkpoints" / f"step-{steps[-1]:08d}"
    whole = load(path, 0).shared["model"]
    into = {f"model/{name}": torch.zeros_like(value) for name, value in whole.items()}
    load_dcp(into, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    assert all(torch.equal(into[f"model/{name}"], value) for name, value in whole.items())


def _same_as_at_the_kill(place: Path, step: int) -> None:
    """The checkpoint of `step`, as one process reads it and exports it, has the state that the last ranks had."""
    import safetensors.torch

    path = place / "run" / "checkpoints" / f"step-{step:08d}"
    store.verify(path)
    expected = torch.load(place / "state.pt")
    shared = load(path, 0).shared
    export_safetensors(path, place / "out.safetensors")
    exported = safetensors.torch.load_file(place / "out.safetensors")
    assert exported.keys() == shared["model"].keys()
    for name, value in shared["model"].items():
        assert torch.equal(value, exported[name])
        assert torch.equal(value, expected[name])


class _Mesh:
    """What is asked of a mesh: its sizes, and where a rank is in it."""

    def __init__(self, sizes: list[int], coordinate: list[int]) -> None:
        self._sizes, self._coordinate = sizes, coordinate

    def get_coordinate(self) -> list[int]:
        return self._coordinate

    def size(self, number: int) -> int:
        return self._sizes[number]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int], list[Any], list[int], list[int]]:
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    dims = st.integers(0, len(shape) - 1)
    kinds = st.one_of(
        st.just(Replicate()),
        st.builds(Shard, dims),
        st.builds(lambda dim, split: _StridedShard(dim, split_factor=split), dims, st.integers(1, 4)),
    )
    placements = [draw(kinds) for _ in sizes]
    return shape, placements, sizes, [draw(st.integers(0, n - 1)) for n in sizes]


@FAST
@given(layouts())
def test_the_box_is_what_torch_gives_the_rank(given: tuple[list[int], list[Any], list[int], list[int]]) -> None:
    """Against torch's own splitting of a tensor of numbers: the same elements, or, if they are no box, a refusal."""
    shape, placements, sizes, coordinate = given
    numbers = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    local = numbers
    for size, at, placement in zip(sizes, coordinate, placements, strict=True):
        if not placement.is_replicate():
            local = placement._split_tensor(local, size, with_padding=False, contiguous=False)[0][at]
    try:
        box = box_of(shape, _Mesh(sizes, coordinate), placements, "w")
    except StateError:
        assert local.numel() and not _is_box(numbers, local)
        return
    assert box.is_in(shape) and torch.equal(numbers[box.slices], local)


def _is_box(numbers: torch.Tensor, local: torch.Tensor) -> bool:
    first = (numbers == local.reshape(-1)[0]).nonzero()[0].tolist()
    box = numbers[tuple(slice(a, a + n) for a, n in zip(first, local.shape, strict=True))]
    return torch.equal(box, local)


def test_a_summand_is_no_part(tmp_path: Path) -> None:
    placements: list[Placement] = [Partial()]
    with pytest.raises(StateError, match=r"extra/mean is a DTensor .*redistribute it"):
        box_of([4], _Mesh([2], [0]), placements, "extra/mean")


def _held(rank: int, at: int, size: int, whole: int) -> Packed:
    """A state in which this rank has `size` of `whole` numbers."""
    packed = pack({"w": torch.arange(at, at + size)})
    return Packed(
        packed.tree, packed.tensors, packed.specs, placed={"w": Held(Spec("I64", (whole,)), Box((at,), (size,)))}
    )


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ([(0, 2, 4), (3, 1, 4)], "gap"),
        ([(0, 3, 4), (2, 2, 4)], "overlap"),
        ([(0, 2, 4), (2, 2, 5)], "parts of the same tensor"),
    ],
)
def test_parts_that_are_no_whole_are_refused(parts: list[tuple[int, int, int]], word: str) -> None:
    """On every rank, before anything is written."""

    def body(ranks: Ranks) -> str:
        with pytest.raises(StateError, match=word) as caught:
            Layouts().agree(_held(ranks.rank, *parts[ranks.rank]), ranks)
        return str(caught.value)

    assert len(set(on_ranks(2, body))) == 1


def test_a_layout_is_agreed_anew_only_when_a_part_is_another() -> None:
    """By all ranks. In between each knows it alone; who has another part knows that it knows none."""

    def body(ranks: Ranks) -> None:
        layouts, half = Layouts(), _held(ranks.rank, 2 * ranks.rank, 2, 4)
        here = ranks.rank, ranks.world_size
        assert layouts.known(half, *here) is None
        first = layouts.agree(half, ranks)
        assert layouts.known(_held(ranks.rank, 2 * ranks.rank, 2, 4), *here) is first is layouts.agree(half, ranks)
        other = [_held(0, 0, 3, 4), half][ranks.rank] if ranks.rank == 0 else _held(1, 3, 1, 4)
        assert layouts.known(other, *here) is None
        second = layouts.agree(other, ranks)
        assert layouts.known(other, *here) is second is not first
        assert layouts.known(half, *here) is None
        assert [share.box for share in second.shares[ranks.rank]] == [[Box((0,), (3,))], [Box((3,), (1,))]][ranks.rank]
        assert layouts.agree(pack({"w": torch.zeros(4)}), ranks).shares[0][0].count == 2

    assert on_ranks(2, body) == [None, None]


_DTYPES = sorted(tensors.DTYPES)


@st.composite
def states(draw: st.DrawFn) -> tuple[int, dict[str, tuple[str, tuple[int, ...], list[list[Box]], list[Box]]]]:
    """A number of ranks, and tensors: type, shape, for each rank the box that it holds, and boxes that are read. Some
    ranks hold the same box, some hold nothing."""
    world = draw(st.integers(1, 4))
    found = {}
    for name in draw(st.sets(st.sampled_from(["model/a", "model/b", "extra/c", "x"]), min_size=1)):
        shape, parts = draw(partitions())
        order = draw(st.permutations(range(world)))
        copies = draw(st.integers(1, max(1, world // max(1, len(parts)))))
        if len(parts) * copies > world:
            parts, copies = [whole(shape)], world
        held = [[parts[place // copies]] if place < len(parts) * copies else [] for place in order]
        wanted = [draw(boxes_of(shape)) for _ in range(world)]
        found[name] = (draw(st.sampled_from(_DTYPES)), shape, held, wanted)
    return world, found


@settings(parent=SLOW, max_examples=40)
@given(states(), st.integers(0, 2**32))
def test_any_boxes_are_read_as_any_others(
    tmp_path_factory: pytest.TempPathFactory, state: tuple[int, dict[str, Any]], seed: int
) -> None:
    """Saved by ranks that hold some boxes, read by ranks that need others: the elements are those of the whole, of any
    type."""
    world, held = state
    folder = tmp_path_factory.mktemp("boxes")
    numbers = torch.Generator().manual_seed(seed)
    wholes = {
        name: torch.randint(
            2 if dtype == "BOOL" else 256, (Spec(dtype, shape).bytes,), dtype=torch.uint8, generator=numbers
        )
        .view(tensors.DTYPES[dtype])
        .reshape(shape)
        for name, (dtype, shape, *_) in held.items()
    }

    def body(ranks: Ranks) -> Any:
        parts, placed = {}, {}
        for name, (dtype, shape, boxes, _) in held.items():
            mine = (boxes[ranks.rank] or [Box((0,) * len(shape), (0,) * len(shape))])[0]
            parts[name] = wholes[name][mine.slices].clone()
            placed[name] = Held(Spec(dtype, shape), mine if wholes[name].numel() else whole(shape))
        packed = Packed(
            {name: {"$tensor": name} for name in parts},
            parts,
            {name: Spec(held[name][0], tuple(part.shape)) for name, part in parts.items()},
            placed=placed,
        )
        layout = Layouts().agree(packed, ranks)
        order = Order(folder, 1, packed, capture_rank(ranks.rank), layout=layout)
        assert save(order, ranks, DISK).error is None
        wanted = {name: Held(Spec(dtype, shape), boxes[ranks.rank]) for name, (dtype, shape, _, boxes) in held.items()}
        read = load(folder / "step-00000001", ranks.rank, world, lambda manifest: wanted).shared
        return all(same(read[name], wholes[name][place.box.slices]) for name, place in wanted.items())

    assert on_ranks(world, body) == [True] * world
    assert same(load(folder / "step-00000001", 0).shared, wholes)
