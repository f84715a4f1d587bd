"""What a standby has ready for a restore: tensors of a snapshot as they lie in shared memory, and a warm-up that leaves
nothing."""

from __future__ import annotations

import copy
import random
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.support.gpu import Gpus, Runtime
from tests.support.jobs import same, state_of
from tests.support.snapshots import snapshot_of
from tests.support.training import Here, training
from tests.support.waiting import until
from trainer.checkpoint.disk.restore import recall
from trainer.checkpoint.format.plan import Spec
from trainer.checkpoint.standby import lending
from trainer.checkpoint.standby.lending import Lending, Mapped, gpus_of
from trainer.checkpoint.standby.warm_up import warm
from trainer.checkpoint.state import rng
from trainer.checkpoint.state.buckets import of
from trainer.checkpoint.state.packing import pack
from trainer.checkpoint.state.state import present
from trainer.checkpoint.state.tensors import DTYPES
from trainer.rundir.machine.shm import buffer_path


class Everything:
    """Lends every tensor."""

    def __init__(self, mapped: Mapped) -> None:
        self.mapped = mapped
        self.lends: dict[str, int] = {}

    def lent(self, name: str, spec: Spec, content: memoryview) -> torch.Tensor | None:
        if not spec.bytes:
            return None
        tensor = torch.frombuffer(content, dtype=DTYPES[spec.dtype]).view(spec.shape)
        self.lends[name] = tensor.data_ptr()
        return tensor


def test_only_the_ranks_own_device_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by the thread that gives the buffers back, whose device is the first one."""
    runtime = Runtime(monkeypatch)
    snapshot_of(tmp_path / "segment", 3)
    monkeypatch.setattr(lending, "_KEPT", 0.0)

    with torch.cuda.device(3):
        mapped = Mapped(tmp_path / "segment", [])
    assert len(runtime.registered) == 2
    lending.give_back_later(mapped, None)

    until(lambda: not runtime.registered)
    assert runtime.devices == {3}


@pytest.mark.parametrize("which", ["a parameter", "a buffer", "what an optimizer changes"])
def test_the_device_of_the_state_is_the_ranks_own(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the program has not told torch of it, and another one is the current device. A warm-up waits for it
    alone, too."""
    gpus, runtime = Gpus(monkeypatch, 4), Runtime(monkeypatch)
    waited: list[torch.device | None] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    model, other = nn.BatchNorm1d(2), nn.Parameter(torch.zeros(2))
    found = {"a parameter": model.weight.data, "a buffer": model.running_mean, "what an optimizer changes": other.data}
    own = torch.device("cuda", 3)
    gpus.put(found[which], own)
    parts = present(model=model, optimizer=torch.optim.SGD([*model.parameters(), other], lr=0.1))
    snapshot_of(tmp_path / "segment", 3)

    warm(lambda: None, parts, of(model, 1))
    mapped = Mapped(tmp_path / "segment", gpus_of(parts))

    assert len(runtime.registered) == 2 and runtime.devices == {own} and waited == [own]
    mapped.close()


def test_a_refusal_is_not_left_to_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last error of a thread is raised by its next kernel: that of the training thread is untouched."""
    runtime = Runtime(monkeypatch, refuses=True)
    snapshot_of(tmp_path / "segment", 3)

    mapped = Mapped(tmp_path / "segment", [])

    assert runtime.failed and threading.get_ident() not in runtime.failed
    path = buffer_path(tmp_path / "segment", 0, "a")
    assert mapped.file(path, path.stat().st_size) is not None
    mapped.close()


def test_lent_from_mapped_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore from lent tensors has the bits of the snapshot, without a copy of them; a tensor that two ranks wrote
    is copied. A buffer that was made anew is mapped anew."""
    runtime = Runtime(monkeypatch)
    segment = tmp_path / "segment"
    snapshot_of(segment, 3)
    mapped = Mapped(segment, [])
    everything = Everything(mapped)

    lent = recall(segment, 3, "run", 0, lending=everything)

    assert same(lent.shared, recall(segment, 3, "run", 0).shared)
    assert same(lent.shared["model"], state_of(3)["model"])
    spans = list(runtime.registered.items())
    assert len(spans) == 2 and everything.lends
    assert all(any(a <= at < a + n for a, n in spans) for at in everything.lends.values())
    assert len(everything.lends) < len(lent.manifest.tensors) == len(recall(segment, 3, "run", 0).manifest.tensors)

    path = buffer_path(segment, 0, "a")
    size, content = path.stat().st_size, path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert mapped.file(path, size) is None
    mapped.refresh()
    view = mapped.file(path, size)
    assert view is not None and bytes(view) == content
    mapped.close()
    assert runtime.registered == {}


class Own(nn.Linear):
    """Looks at what it is loaded from, and might keep it."""

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[arg-type]


def hooked(model: nn.Module) -> nn.Module:
    model.register_load_state_dict_post_hook(lambda module, keys: None)
    return model


def lent_of(model: nn.Module) -> set[str]:
    """The tensors that a restore of `model`, with an optimizer, is lent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    parts = present(model=model, optimizer=optimizer)
    fresh = pack({name: part.state_dict() for name, part in parts.items()})
    lends = Lending(parts, fresh)
    assert bool(lends) == any(map(lends.lends, fresh.tensors))
    return {name for name in fresh.tensors if lends.lends(name)}


def test_lent_on_the_cpu_is_what_is_copied_in_place() -> None:
    """A large parameter of a module that torch loads: not a small one, not an optimizer's state, which would become a
    part of it, and nothing of a module that somebody else loads or looks at."""
    wide = nn.Sequential(nn.Linear(1024, 512), nn.BatchNorm1d(512))

    assert lent_of(wide) == {"model/0.weight"}
    assert lent_of(nn.Sequential(nn.Linear(1024, 512), Own(2, 2))) == set()
    assert lent_of(nn.Sequential(hooked(nn.Linear(1024, 512)))) == set()
    assert lent_of(nn.utils.parametrizations.weight_norm(nn.Linear(1024, 512))) == set()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        assert lent_of(wide) == set()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_a_module_keeps_nothing_that_was_lent(tmp_path: Path) -> None:
    """Loaded from memory that is lent, it has the values where its parameters lay, also when that memory changes."""
    model = nn.Linear(1024, 512)
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    lending_ = Lending(present(model=model), pack({"model": model.state_dict()}))
    wanted = torch.rand(512, 1024)
    content = bytearray(wanted.numpy().tobytes())

    lent = lending_.lent("model/weight", Spec("F32", (512, 1024)), memoryview(content))
    assert lent is not None and lending_.lent("model/bias", Spec("F32", (512,)), memoryview(bytes(2048))) is None
    model.load_state_dict({"weight": lent, "bias": model.bias.detach()})
    content[:] = bytes(len(content))

    assert torch.equal(model.weight, wanted)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
@pytest.mark.parametrize("here", [True], indirect=True, ids=["overlapped"])
def test_a_run_that_is_lent_everything_goes_on_to_the_bit(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt reads what the last one left in memory, and writes its own beside it; the end is that of a run
    without a failure."""
    monkeypatch.setattr(lending, "_LEAST", 1)
    monkeypatch.setattr(lending, "_LEAST_ON_CPU", 1)
    lent: list[str] = []
    real = Lending.lent

    def told(self: Lending, name: str, spec: Spec, content: memoryview) -> torch.Tensor | None:
        found = real(self, name, spec, content)
        lent.extend([name] if found is not None else [])
        return found

    monkeypatch.setattr(Lending, "lent", told)
    for attempt, steps in enumerate((3, 4, 6, 9)):
        here.attempt(attempt, tmp_path / "shm")
        with training() as made:
            assert made.start == (0, 3, 4, 6)[attempt] and bool(lent) == (attempt > 0)
            made.run(steps)
            made.copied()
            killed = copy.deepcopy(made.state())
    here.attempt(0, tmp_path / "undisturbed")
    with training() as plain:
        plain.run(9)
        assert same(killed, plain.state())
    assert {name.rpartition(".")[2] for name in lent} == {"weight", "bias", "running_mean", "running_var"} | {
        "num_batches_tracked"
    }


class Averaging(nn.Module):
    """It puts another tensor in its buffer's place at each pass, and makes a buffer at the first."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + inputs.mean(0)
        if "first" not in self._buffers:
            self.register_buffer("first", inputs.clone())
        return inputs - self.mean


def test_warm_up_leaves_no_buffer() -> None:
    """Neither a tensor in another's place nor a new one."""
    model = Averaging()
    mean = model.mean

    warm(lambda: model(torch.rand(5, 4)), present(model=model), of(model, 1))

    assert model.mean is mean and dict(model.named_buffers()).keys() == {"mean"} and not mean.any()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")  # torch's, as it makes them
def test_warm_up_leaves_no_step_in_schedulers_of_schedulers() -> None:
    """Nor in an optimizer that is not torch's."""

    class Counts:
        steps = 0

        def state_dict(self) -> dict[str, int]:
            return {"steps": self.steps}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.steps = state["steps"]

    def rates(warmed: bool) -> list[float]:
        optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
        inner = [lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 4), lr_scheduler.ExponentialLR(optimizer, 0.9)]
        scheduler = lr_scheduler.SequentialLR(optimizer, [lr_scheduler.ChainedScheduler(inner[:1]), inner[1]], [4])
        counts = Counts()
        parts = {"optimizer.a": optimizer, "optimizer.b": counts, "scheduler": scheduler}

        def step() -> None:
            counts.steps += 1
            optimizer.step()
            scheduler.step()

        if warmed:
            warm(step, parts, of(None, 1))
        found = []
        for _ in range(6):
            step()
            found.append(optimizer.param_groups[0]["lr"])
        assert counts.steps == 6
        return found

    assert rates(warmed=True) == rates(warmed=False)


def test_warm_up_leaves_nothing() -> None:
    """After a step with dropout, BatchNorm, Adam, a scheduler and a scaler, every part and generator is as before, and
    training from there gives the bits of training without a warm-up."""

    def made() -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.StepLR, torch.amp.GradScaler]:
        torch.manual_seed(3)
        random.seed(3)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return (
            model,
            optimizer,
            torch.optim.lr_scheduler.StepLR(optimizer, 1),
            torch.amp.GradScaler("cpu", init_scale=4),
        )

    def step(
        parts: tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.StepLR, torch.amp.GradScaler],
    ) -> None:
        model, optimizer, scheduler, scaler = parts
        optimizer.zero_grad()
        scaler.scale(model(torch.rand(5, 4) + random.random()).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()

    plain, warmed = made(), made()
    parts = present(model=warmed[0], optimizer=warmed[1], scheduler=warmed[2], scaler=warmed[3])
    before, state = copy.deepcopy([part.state_dict() for part in warmed]), rng.capture()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warm(lambda: (warmed[0].eval(), warmed[0].train(), step(warmed)), parts, of(warmed[0], 1))

    assert same([part.state_dict() for part in warmed], before) and same(rng.capture(), state)
    assert all(parameter.grad is None for parameter in warmed[0].parameters())
    for trained in (plain, warmed):
        torch.manual_seed(5)
        random.seed(5)
        for _ in range(3):
            step(trained)
    assert same([part.state_dict() for part in plain], [part.state_dict() for part in warmed])
