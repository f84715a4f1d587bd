"""Snapshots of state on GPUs are of their step to the bit, however late the device is; on a stand-in for the device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from tests.support.gpu import GB, GPU, Gpus, Stream
from tests.support.jobs import same
from trainer.checkpoint.disk.restore import recall
from trainer.checkpoint.interval import Pace
from trainer.checkpoint.memory import cuda, image, snapshots
from trainer.checkpoint.memory.memory import Memory
from trainer.checkpoint.memory.place import Place


class Job:
    """A model on a GPU, snapshots of it, and what it was at each."""

    def __init__(self, gpus: Gpus, folder: Path, devices: int = 1) -> None:
        torch.manual_seed(0)
        self.gpus, self.folder = gpus, folder
        self.model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 300), nn.Linear(300, 2)
        ).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.devices = devices
        self.backward()
        self.optimizer.step()
        for number, (p, state) in enumerate(self.optimizer.state.items()):
            for tensor in (p, state["exp_avg"], state["exp_avg_sq"]):
                gpus.put(tensor.data, torch.device("cuda", number % devices))
        for buffer in self.model.buffers():
            gpus.put(buffer)
        self.memory = Memory(
            Place(folder, 0, 1, 0, None), {"model": self.model, "optimizer": self.optimizer}, spare=True
        )

    def backward(self) -> None:
        self.model(torch.randn(4, 3, 5, 5)).square().mean().backward()

    def step(self) -> None:
        """A step of training; from then on the device may do what it has not done."""
        self.backward()
        self.optimizer.step()
        self.gpus.let_go.set()

    def replay(self) -> None:
        """As a CUDA graph does: everything changes and no hook is called, nor a tensor's version raised."""
        for tensors in ([*self.model.parameters()], *[list(s.values()) for s in self.optimizer.state.values()]):
            for tensor in tensors:
                tensor.detach().numpy()[...] += 1
        self.gpus.let_go.set()

    def rebind(self) -> list[StorageWeakRef]:
        """Another tensor is in each state of the optimizer, as LBFGS does it. Returns their memory."""
        found = []
        for number, state in enumerate(self.optimizer.state.values()):
            state["exp_avg"] = self.gpus.lend(state["exp_avg"].clone(), torch.device("cuda", number % self.devices))
            found.append(StorageWeakRef(state["exp_avg"].untyped_storage()))
        return found

    def now(self) -> Any:
        return copy.deepcopy([dict(self.model.state_dict()), self.optimizer.state_dict()["state"]])

    def take(self, step: int) -> Any:
        """The state of which a snapshot was begun, while the device does nothing."""
        self.memory.wait()
        self.gpus.let_go.clear()
        wanted = self.now()
        self.memory.take(step, {})
        return wanted

    def assert_taken(self, step: int, wanted: Any) -> None:
        self.memory.wait()
        assert self.memory.problem is None
        assert snapshots.newest_snapshot(self.folder) == step
        self.assert_right(step, wanted)

    def assert_right(self, step: int, wanted: Any) -> None:
        shared = recall(self.folder, step, None, 0).shared
        assert same([shared["model"], shared["optimizer"]["state"]], wanted), f"step {step} is torn"

    def warm_up(self, first: int = 0) -> None:
        """Both buffers are made and registered."""
        for step in range(first, first + 100):
            self.gpus.let_go.set()
            self.step()
            self.memory.take(step, {})
            self.memory.wait()
            if len(self.memory.segment._buffers) == 2 and snapshots.newest_snapshot(self.folder) == step:
                return
        pytest.fail("no snapshots")


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Job]:
    devices, free = getattr(request, "param", (1, 60 * GB))
    made = Job(Gpus(monkeypatch, devices, free), tmp_path / "supervise-m", devices)
    made.warm_up()
    yield made
    made.gpus.let_go.set()
    made.memory.close()


ROOM = pytest.mark.parametrize(
    "job", [(1, 60 * GB), (1, 10 * GB), (2, 60 * GB)], indirect=True, ids=["room", "no room", "two devices"]
)


@ROOM
def test_each_snapshot_is_of_its_step(job: Job) -> None:
    """Held on the device once copies were late, if it has room for a second process as well; then nothing waits."""
    for step in range(200, 207):
        wanted = job.take(step)
        job.step()
        job.assert_taken(step, wanted)
    assert job.memory._planner.image is not None
    assert job.memory._planner.image.held == (job.gpus.free > 20 * GB)
    assert job.gpus.by == {GPU} and len(job.gpus.registered) > 4
    if job.memory._planner.image.held:
        wanted = job.take(300)
        job.backward()
        job.optimizer.step()
        assert job.memory.busy  # the step did not wait, though the device has not copied anything yet
        job.gpus.let_go.set()
        job.assert_taken(300, wanted)


@ROOM
def test_the_next_image_is_made_when_the_last_one_is_gone(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a held image as large as the state there is room for one, not for two: on each device, also while another
    one is planned. Of the state that it was made for only the newest is kept."""
    pieces: list[tuple[torch.device, StorageWeakRef]] = []
    alive: list[int] = []

    def piece(size: int, device: torch.device) -> torch.Tensor:
        alive.append(sum(place == device and not memory.expired() for place, memory in pieces))
        made = job.gpus.lend(torch.empty(size, dtype=torch.uint8), device)
        pieces.append((device, StorageWeakRef(made.untyped_storage())))
        return made

    for step in range(200, 203):
        job.take(step)
        job.step()
    monkeypatch.setattr(image, "_piece", piece)
    states = list[StorageWeakRef]()
    for step in range(300, 320):
        earlier = states[: -len(job.optimizer.state)]
        assert all(memory.expired() for memory in earlier)
        states += job.rebind()
        wanted = job.take(step)
        job.step()
        job.assert_taken(step, wanted)
    assert alive == [0] * (20 * job.devices if job.gpus.free > 20 * GB else 0)


@ROOM
@pytest.mark.parametrize("how", ["recorded", "seen before", "never seen"])
def test_steps_of_a_cuda_graph(job: Job, how: str) -> None:
    """No hook tells of them. They are noticed when they are recorded, or by what has changed. Of all snapshots, the one
    that was begun before anybody could know does not count."""
    if how == "recorded":
        job.gpus.capturing = True
        job.optimizer.step()
        job.gpus.capturing = False
    elif how == "seen before":
        job.step()
    unknown = job.take(201)
    job.replay()
    wanted = job.take(202)
    assert job.memory._planner.unseen
    if 201 in [one.step for one in snapshots.common(job.folder, snapshots.boards(job.folder))]:
        job.assert_right(201, unknown)
    job.replay()
    job.assert_taken(202, wanted)
    for step in range(203, 207):
        wanted = job.take(step)
        job.replay()
        job.assert_taken(step, wanted)


def test_a_step_that_was_left_out_is_none(job: Job) -> None:
    """As a GradScaler does: no hook, and nothing has changed."""
    for step in (200, 201):
        wanted = job.take(step)
        job.gpus.let_go.set()
        job.assert_taken(step, wanted)
    assert not job.memory._planner.unseen


def test_a_side_stream_that_trains(job: Job) -> None:
    """The copy begins after it, and its next step comes after the copy, though another stream is the current one."""
    side = Stream(job.gpus, GPU)
    values = [p.detach().numpy() for p in job.model.parameters()]

    def change() -> None:
        for value in values:
            value += 1

    for step in range(200, 204):
        before = job.now()
        with job.gpus.stream(side):
            job.memory.gate()
            side.does(change)
        job.take(step)
        with job.gpus.stream(side):
            job.memory.gate()
            side.does(change)
        job.gpus.let_go.set()
        job.memory.wait()
        shared = recall(job.folder, step, None, 0).shared
        for name, _ in job.model.named_parameters():
            assert torch.equal(shared["model"][name], before[0][name] + 1)
        with job.gpus.lock:
            while side.work:
                side.work.popleft()()


def test_nothing_waits_while_memory_is_made(job: Job) -> None:
    """Registering takes as long as it likes: training goes on, and snapshots are left out."""
    job.memory.segment.close()  # as after a restart: the files are there, and nothing is mapped
    job.gpus.may_register.clear()
    for step in range(200, 205):
        job.memory.take(step, {})
        job.step()
    assert job.memory.busy and job.memory.unready == 204
    job.gpus.may_register.set()
    job.memory.wait()
    job.warm_up(300)


def test_memory_is_given_back_on_its_own_device(job: Job) -> None:
    job.gpus.let_go.set()
    job.memory.close()
    assert not job.gpus.registered and job.gpus.by == {GPU}


def test_batches() -> None:
    """Every byte once, in order, about a chunk at a time."""
    sizes = [5, cuda._CHUNK + 3, 7, 0, 2 * cuda._CHUNK, 1]
    memory = torch.zeros(sum(sizes), dtype=torch.uint8)
    source = torch.randint(0, 256, (sum(sizes),), dtype=torch.uint8)
    pairs = list(zip(memory.split(sizes), source.split(sizes), strict=True))
    made = cuda.batches(pairs, memory.data_ptr())
    assert max(sum(part.numel() for part in sources) for _, sources in made) <= cuda._CHUNK
    assert len(made) <= sum(sizes) / cuda._CHUNK + len(sizes)
    for targets, sources in made:
        torch._foreach_copy_(targets, sources)
    assert torch.equal(memory, source)


@pytest.mark.parametrize(("cost", "most"), [(0.0, 1), (0.005, 20), (0.025, 100)])
def test_the_pace_by_steps_with_and_without(cost: float, most: int) -> None:
    """A snapshot of which the host sees nothing slows two steps of 50 ms: it is paid for with at most 1 % of the
    time, and steps without one are left for the comparison."""
    pace, since, taken, total, rest, making, extra = Pace(), 0, 0, 0.0, 0, 2, 0.0
    for step in range(3000):
        # The first ones need memory that is made then, which holds up training for long.
        seconds = 0.05 + (step % 7) * 1e-5 + (extra if rest else 0.0)
        pace.stepped(total := total + seconds)
        pace.timed(seconds, rest > 0)
        rest, since = max(0, rest - 1), since + 1
        if pace.due(since) and not rest:
            pace.spent(0.0001)
            extra = cost / 2
            if making:
                pace.made()
                making, extra = making - 1, 1.0
            since, rest, taken = 0, 2, taken + (step >= 1500)
    assert taken * cost <= 0.01 * 0.05 * 1500 and taken >= 1500 / (2 * most + 3)
