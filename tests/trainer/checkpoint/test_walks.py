"""A model that is not walked again gives the state that a walk would give, whatever was done to it in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from trainer.checkpoint.memory.walks import Walked
from trainer.checkpoint.state.packing import Packed, Packer, pack
from trainer.checkpoint.state.several import Models
from trainer.checkpoint.state.state import capture, present, steadiness

_SEEN = torch.ones(1)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
        self.head = nn.Linear(4, 4)
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.register_buffer("a", torch.zeros(2))
        self.register_buffer("b", self.a)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(x))
        return out


class _Odd(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"seen": _SEEN}


def _set_data(net: Any) -> None:
    net.head.weight.data = net.head.weight.data.clone()


def _transpose(net: Any) -> None:
    net.head.weight.data = net.head.weight.data.t()


def _conjugate(net: Any) -> None:
    net.a = net.b = torch.ones(2, dtype=torch.complex64).conj().imag


def _move_last(net: Any) -> None:
    """The same keys and objects one after another, and one of them in another module."""
    net.body[2]._parameters["extra"] = net.head._parameters.pop("weight")


def _rebind(net: Any) -> None:
    net.head._parameters = dict(net.head._parameters, other=nn.Parameter(torch.ones(1)))


def _swap_class(net: Any) -> None:
    net.head.__class__ = _Odd


def _own_method(net: Any) -> None:
    real = net.head._save_to_state_dict
    net.head._save_to_state_dict = lambda destination, prefix, keep: (
        real(destination, prefix, keep),
        destination.update({f"{prefix}more": _SEEN}),
    )


CHANGES: dict[str, Callable[[Any], object]] = {
    "nothing": lambda net: None,
    "a parameter is replaced": lambda net: setattr(net.head, "weight", nn.Parameter(torch.randn(4, 4))),
    "a tensor is tied": lambda net: setattr(net.head, "weight", net.body[0].weight),
    "tied buffers come apart": lambda net: setattr(net, "b", torch.zeros(2)),
    "data is set": _set_data,
    "data is set to a view of itself": _transpose,
    "a negative view": _conjugate,
    "a buffer is added": lambda net: net.head.register_buffer("seen", torch.ones(2)),
    "a buffer is replaced": lambda net: setattr(net.body[1], "running_mean", torch.ones(4)),
    "a buffer is saved from now on": lambda net: net._non_persistent_buffers_set.clear(),
    "a module is added": lambda net: net.add_module("more", nn.Linear(2, 2)),
    "a module is replaced": lambda net: net.body.__setitem__(0, nn.Linear(4, 4)),
    "a module is there twice": lambda net: net.add_module("again", net.head),
    "a module is removed": lambda net: net.body.__delitem__(1),
    "a parameter is removed": lambda net: setattr(net.head, "bias", None),
    "a parameter moves to a neighbour": _move_last,
    "the dict of parameters is another": _rebind,
    "the class is another": _swap_class,
    "a method is an object's own": _own_method,
    "buffers of another type": lambda net: setattr(net.body[1], "running_var", torch.ones(4).double()),
    "a hook": lambda net: net.head.register_state_dict_post_hook(
        lambda module, state, prefix, _: state.update({f"{prefix}hooked": _SEEN})
    ),
    "a pre-hook": lambda net: net.head.register_state_dict_pre_hook(
        lambda module, prefix, keep: setattr(module, "bias", None)
    ),
}


def _step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    for param in net.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    for buffer in net.buffers():
        buffer.add_(1)


def _same(left: Packed, right: Packed) -> bool:
    return (
        (left.tree, left.specs, left.visited, list(left.marked)) == (right.tree, right.specs, right.visited, [])
        and left.tensors.keys() == right.tensors.keys()
        and all(left.tensors[name].data_ptr() == tensor.data_ptr() for name, tensor in right.tensors.items())
        and all(torch.equal(left.tensors[name], tensor) for name, tensor in right.tensors.items())
    )


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_a_state_that_is_not_walked_again_is_that_of_a_walk(several: bool) -> None:
    for name, change in CHANGES.items():
        net = _Net()
        optimizer = torch.optim.AdamW(net.parameters())
        parts: Any = present(model={"net": net, "other": nn.Linear(2, 2)} if several else net, optimizer=optimizer)
        walked = Walked(parts["model"])
        packer = Packer(lambda parts=parts: steadiness(parts), known=lambda walked=walked: walked.state)  # type: ignore[misc]
        for number in range(6):
            if number == 3:
                change(net)
            if number in (0, 2, 4):
                # Also states that appear in a step: those of a new parameter.
                optimizer.param_groups[0]["lr"] = 0.1 * number
                _step(net, optimizer)
            now = capture(parts, number, {"n": number}, packer, walked.state_dict)
            assert _same(now, capture(parts, number, {"n": number}, pack)), (name, number)


def test_an_unchanged_model_is_not_walked_and_a_changed_one_is() -> None:
    net = _Net()
    walked = Walked(net)
    first = walked.state_dict()
    with torch.no_grad():
        net.head.weight.add_(1)
    assert walked.state_dict() is first and torch.equal(first["head.weight"], net.head.weight)
    for name, change in list(CHANGES.items())[1:]:
        net = _Net()
        walked = Walked(net)
        first = walked.state_dict()
        change(net)
        assert walked.state_dict() is not first, name


def _unusual() -> Iterator[nn.Module]:
    yield nn.Sequential(_Odd(2, 2))
    hooked = nn.Linear(2, 2)
    hooked.register_state_dict_post_hook(lambda *_: None)
    yield hooked
    yield Models({"a": nn.Linear(2, 2), "b": torch.optim.SGD([torch.ones(1)])})
    yield nn.ParameterList([nn.Parameter(torch.ones(1).as_subclass(_Tensor))])


class _Tensor(torch.Tensor):
    pass


def test_a_model_that_makes_its_state_in_its_own_way_is_walked_each_time() -> None:
    for net in _unusual():
        walked = Walked(net)
        assert walked.state_dict() is not walked.state_dict(), type(net)
