"""What cannot come back as it was is refused before training has gone on, in a sentence that says what to do."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from tests.support.frameworks import needs
from tests.support.jobs import on_ranks, same
from tests.support.training import Notes
from trainer.checkpoint import Checkpointer, CheckpointMismatch, StateError
from trainer.checkpoint.checks.refusals import refuse
from trainer.checkpoint.disk import restore as restoring
from trainer.checkpoint.disk.restore import Tiers
from trainer.checkpoint.disk.save import Order, save
from trainer.checkpoint.errors import Misfit
from trainer.checkpoint.format import manifest
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.memory.memory import Memory
from trainer.checkpoint.memory.place import Place
from trainer.checkpoint.state.gradients import Gradients
from trainer.checkpoint.state.packing import pack
from trainer.checkpoint.state.state import apply, capture_rank, present
from trainer.checkpoint.state.tree import plain
from trainer.rundir.codes import ExitCode
from trainer.rundir.files.durable import DISK


class Coded(torch.Tensor):
    """A tensor made of two others, as 8-bit optimizer states are: it has no memory of its own."""

    codes: torch.Tensor

    @staticmethod
    def __new__(cls, codes: torch.Tensor) -> Coded:
        made: Coded = torch.Tensor._make_wrapper_subclass(cls, codes.shape)  # type: ignore[attr-defined]
        made.codes = codes
        return made

    def __tensor_flatten__(self) -> tuple[list[str], list[Any]]:
        return ["codes"], []

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Coded(args[0].codes)


class Eight(torch.optim.SGD):
    """Its states are made in its first step, of codes."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for param in self.param_groups[0]["params"]:
            self.state[param] = {"m": Coded(torch.zeros(param.shape))}


def _with(buffer: torch.Tensor) -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_buffer("wide", buffer)
    return model


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": [nn.Linear(2, 2)]}, r"model is a list: give a mapping of names, such as model=\{'generator'"),
        ({"optimizer": {"a": 1}}, r"optimizer a is a int, which has no state_dict"),
        ({"scheduler": ()}, r"scheduler is a tuple: give a mapping of names"),
        ({"model": {"a.b": nn.Linear(2, 2)}}, r"model has the name 'a.b': give names of letters"),
        ({"ema": nn.Linear(2, 2)}, r"ema is one average beside a model"),
        ({"model": {"a": nn.LazyLinear(3)}}, "run the model once"),
        ({"data": iter([])}, r"data is a list_iterator, which has no state_dict\(\)"),
        ({"model": nn.LazyLinear(3)}, "run the model once"),
        ({"model": nn.Linear(2, 2, device="meta")}, "to_empty"),
        ({"model": _with(torch.zeros(1).expand(7))}, r"model/wide is an expanded tensor"),
        ({"model": _with(torch.eye(3).to_sparse())}, r"model/wide is a sparse_coo tensor"),
        ({"extra": {"t": torch.zeros(2).to_sparse()}}, r"extra/t is a sparse_coo tensor"),
        ({"extra": {"t": Coded(torch.zeros(2))}}, r"extra/t is a .*Coded, a tensor that is made of other tensors"),
    ],
)
def test_kinds_that_cannot_be_saved(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    """At the latest in restore(), and never again after a restart: each attempt would end the same."""
    with pytest.raises(StateError, match=says) as refused:
        Checkpointer(**options, directory=tmp_path).restore()
    assert refused.value.exit_code == ExitCode.NEVER_RESTART


def test_states_that_the_first_step_makes(tmp_path: Path) -> None:
    """An optimizer's states that cannot be saved end training after one step, although no save is due."""
    model = nn.Linear(2, 2)
    optimizer = Eight(model.parameters(), 0.1)
    ckpt = Checkpointer(model=model, optimizer=optimizer, directory=tmp_path, every=None)
    ckpt.restore()
    optimizer.step()
    with pytest.raises(StateError, match=r"optimizer/state/0/m is a .*Coded"):
        ckpt.step(1)
    ckpt._stop.close()


def test_weights_in_nf4(tmp_path: Path) -> None:
    """torchao's, as QLoRA trains beside them: refused by name in restore(), before the first step."""
    needs("torchao")
    quantization = importlib.import_module("torchao.quantization")
    if not hasattr(quantization, "NF4Tensor"):
        pytest.skip("this torchao has its NF4Tensor elsewhere")
    kind = quantization.NF4Tensor
    weight = nn.Parameter(kind.from_tensor(torch.randn(64, 64), 64, 4), requires_grad=False)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 2))
    model[0].weight = weight
    optimizer = torch.optim.AdamW(model[1].parameters())
    ckpt = Checkpointer(model=model, optimizer=optimizer, directory=tmp_path, every=1)
    with pytest.raises(StateError, match=r"model/0.weight is a torchao\..*NF4Tensor, a tensor that is made of other"):
        ckpt.restore()
    ckpt._stop.close()


def test_states_of_torchao_in_8_bits(tmp_path: Path) -> None:
    """As the real optimizer makes them in its first step; it compiles that step for 20 s."""
    needs("torchao")
    state = importlib.import_module("torchao.optim.subclass_8bit").OptimState8bit.zeros((64, 64))
    with pytest.raises(StateError, match=r"extra/m is a torchao\..*OptimState8bit, a tensor that is made of other"):
        Checkpointer(extra={"m": state}, directory=tmp_path).restore()


def _accumulated(folder: Path, scaler: torch.amp.GradScaler | None, micro: bool) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ckpt = Checkpointer(model=model, optimizer=optimizer, scaler=scaler, directory=folder, every=1)
    for step in range(ckpt.restore(), 6):
        inf = scaler is not None and step < 4 and not micro
        loss = model(torch.ones(1, 2)).sum() * (float("inf") if inf else 1.0)
        (loss if scaler is None else scaler.scale(loss)).backward()
        if not micro or step % 3 == 2:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            if micro:
                optimizer.zero_grad()
        ckpt.step(step + 1)


def test_gradients_that_wait_are_told_of(tmp_path: Path, notes: Notes) -> None:
    """Once, in a loop whose steps are micro-batches. Not in one that leaves the gradients of its last step, nor where a
    GradScaler leaves steps out because of infinities."""
    found = []
    for number, (scaled, micro) in enumerate(((False, False), (True, False), (False, True), (True, True))):
        notes.kept.clear()
        _accumulated(tmp_path / f"{number}", torch.amp.GradScaler("cpu") if scaled else None, micro)
        found.append([fields["text"] for kind, fields in notes.kept if kind == "warning"])

    assert [sum("gradients are pending" in text for text in texts) for texts in found] == [0, 0, 1, 1]


@pytest.mark.parametrize("withheld", ["sums among the copies", "sums among the shards", "nothing"])
def test_gradients_that_no_parameter_shows_are_told_of(withheld: str) -> None:
    """Those that FSDP2 keeps to itself until the last micro-batch, with copies (HSDP) and without. They are not once
    they are reduced and stepped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.distributed.fsdp import fully_shard
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        copies = withheld == "sums among the copies"
        mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("copies", "shards")) if copies else None
        model = fully_shard(nn.Linear(2, 2), mesh=mesh)
        if withheld != "nothing":
            (model.set_requires_all_reduce if copies else model.set_requires_gradient_sync)(False)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        gradients = Gradients({"model": model, "optimizer": optimizer})
        model(torch.ones(1, 2)).sum().backward()
        assert all(param.grad is None for param in model.parameters()) is (withheld != "nothing")
        if withheld == "nothing":
            optimizer.step()
            optimizer.zero_grad()

        told = [gradients.pending(saves=True) for _ in range(2)]

        assert [bool(text) for text in told] == [withheld != "nothing", False], "once"
        assert withheld == "nothing" or "grads=True" in str(told[0])
    finally:
        dist.destroy_process_group()


def test_gradients_of_an_optimizer_in_a_cuda_graph_are_not_told_of() -> None:
    """The graph makes its steps, and calls no hook: nobody can tell that they wait."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), capturable=True)
    gradients = Gradients({"model": model, "optimizer": optimizer})
    model(torch.ones(1, 2)).sum().backward()
    assert gradients.pending(saves=True) is None
    optimizer.param_groups[0]["capturable"] = False
    assert gradients.pending(saves=True) is not None


def test_a_loader_that_draws_from_everybodys_generator(tmp_path: Path, notes: Notes) -> None:
    """Its first draw after a restore is one too many: that is said. With a generator of its own there is none."""

    class Loader(torch.utils.data.DataLoader[int]):
        def state_dict(self) -> dict[str, int]:
            return {}

        def load_state_dict(self, state: dict[str, int]) -> None: ...

    for generator, told in ((None, True), (torch.Generator(), False)):
        notes.kept.clear()
        Checkpointer(data=Loader([1, 2], generator=generator), directory=tmp_path).restore()  # type: ignore[arg-type]
        assert any("generator=torch.Generator()" in fields.get("text", "") for _, fields in notes.kept) is told


def test_shards_of_torch() -> None:
    """FSDP1 anywhere in the model, and ZeRO: when the Checkpointer is made. A DTensor (FSDP2) where it is one rank's
    alone, or where one file is written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
        from torch.distributed.optim import ZeroRedundancyOptimizer
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flat = nn.Sequential(FullyShardedDataParallel(nn.Linear(2, 2), device_id=torch.device("cpu")))
        with pytest.raises(StateError, match=r"FSDP1.*use fully_shard"):
            refuse({"model": flat})
        zero = ZeroRedundancyOptimizer(nn.Linear(2, 2).parameters(), torch.optim.SGD, lr=0.1)
        with pytest.raises(StateError, match="use the optimizer that it wraps"):
            refuse({"optimizer": zero})
        state = {"model": fully_shard(nn.Linear(2, 2)).state_dict()}
        assert set(pack(state).placed) == {"model/weight", "model/bias"}
        with pytest.raises(StateError, match=r"model/weight is sharded over ranks .*full_tensor"):
            pack(state, "rank0")
        with pytest.raises(StateError, match=r"model/weight is sharded over ranks .*use Checkpointer"):
            plain(state)
    finally:
        dist.destroy_process_group()


def test_a_snapshot_that_fails_does_not_end_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with it: it is a problem that is told."""
    memory = Memory(Place(tmp_path / "segment", 0, 1, 0, "run"), {"model": nn.Linear(2, 2)})
    monkeypatch.setattr("trainer.checkpoint.memory.image.flat_bytes", lambda *given: torch.zeros(2)[9])
    memory.take(1, {})
    assert "IndexError" in str(memory.problem)
    memory.close()


def _fresh(momentum: bool = True) -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}


def _stored(parts: dict[str, Any]) -> dict[str, Any]:
    parts["model"](torch.ones(1, 2)).sum().backward()
    parts["optimizer"].step()
    return {name: part.state_dict() for name, part in parts.items()}


@pytest.mark.parametrize("case", ["class", "shape", "all at once"])
def test_all_differences_are_found_before_anything_is_touched(case: str) -> None:
    """Another class of optimizer, states of other shapes, other names and shapes of weights: one message has them."""
    stored, parts = _stored(_fresh()), _fresh()
    weights = list(parts["model"].parameters())
    says = []
    if case == "class":
        parts["optimizer"] = torch.optim.SGD(weights, 0.1, momentum=0.9)
        says = ["another class than this SGD", "betas"]
    if case == "shape":
        stored["optimizer"]["state"][1]["exp_avg"] = torch.zeros(5)
        says = ["exp_avg [5] float32", "the parameter is [3] float32"]
    if case == "all at once":
        parts["model"] = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
        parts["optimizer"] = torch.optim.AdamW([weights[0]])
        says = ["0.weight is [3, 2]", "1.weight is [2, 3]", "groups have [4] parameters", "0.bias is [3] float32"]
    before = {key: value.clone() for key, value in parts["model"].state_dict().items()}
    with pytest.raises(CheckpointMismatch) as raised:
        apply(parts, stored, "it")

    assert all(text in str(raised.value) for text in says), raised.value
    assert len(str(raised.value).splitlines()) == 1
    assert same(before, dict(parts["model"].state_dict()))
    assert not parts["optimizer"].state


def test_ranks_of_other_shapes_are_no_damage(tmp_path: Path) -> None:
    """A checkpoint that an older version wrote, of ranks whose tensors had other shapes: every byte is as written, so
    it is left in its place, and the run never starts again."""

    def body(ranks: Ranks) -> None:
        own = torch.zeros(8 + ranks.rank)
        assert save(Order(tmp_path, 1, pack({"w": own}), capture_rank(ranks.rank)), ranks, DISK).error is None
        with pytest.raises(Misfit):
            restoring.load(tmp_path / "step-00000001", ranks.rank)
        with pytest.raises(CheckpointMismatch, match="it is not damaged"):
            restoring.restore(Tiers(tmp_path), "auto", ranks, DISK)

    assert on_ranks(2, body) == [None, None]
    assert (tmp_path / "step-00000001" / manifest.NAME).exists()


def _ordered(names: list[str], named: bool = False, model: nn.Module | None = None) -> dict[str, Any]:
    """A model and an optimizer that has got its parameters in this order. All of them have one shape."""
    model = model or nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "abc"})
    known = dict(model.named_parameters())
    given: Any = [(f"{name}.weight", known[f"{name}.weight"]) if named else known[f"{name}.weight"] for name in names]
    return present(model=model, optimizer=torch.optim.SGD(given, 0.1, momentum=0.9))


@pytest.mark.parametrize("named", [False, True])
def test_the_order_of_parameters_does_not_matter(named: bool) -> None:
    """Each has the momentum of its own name, in an optimizer that was made in another order; so has the next state."""
    parts = _ordered(["a", "b", "c"], named)
    for number, param in enumerate(parts["model"].parameters()):
        param.grad = torch.full((2, 2), float(number))
    parts["optimizer"].step()
    stored = {name: part.state_dict() for name, part in parts.items()}
    other = _ordered(["c", "a", "b"], named)
    assert apply(other, stored, "it") == []
    for _ in range(2):
        momenta = [float(other["optimizer"].state[p]["momentum_buffer"][0, 0]) for p in other["model"].parameters()]
        assert momenta == [0.0, 1.0, 2.0]
        again = {name: part.state_dict() for name, part in other.items()}
        other = _ordered(["a", "b", "c"], named)
        apply(other, again, "it")


def test_other_parameters_are_a_mismatch() -> None:
    """An optimizer of as many parameters, of the same shapes, but not the same: nothing is touched."""
    parts = _ordered(["a", "b"])
    stored = {name: part.state_dict() for name, part in parts.items()}
    other = _ordered(["b", "c"])
    before = {name: value.clone() for name, value in other["model"].state_dict().items()}
    with pytest.raises(CheckpointMismatch, match=r"group 0 of its optimizer has a.weight in the place of c.weight"):
        apply(other, stored, "it")
    assert same(before, dict(other["model"].state_dict()))


def test_a_state_without_names_goes_by_order() -> None:
    """As older versions stored it."""
    parts = _ordered(["a", "b", "c"])
    stored = {name: part.state_dict() for name, part in parts.items() if name != "parameters"}
    assert apply(_ordered(["a", "b", "c"]), stored, "it") == []
