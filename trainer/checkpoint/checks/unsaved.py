"""What a program trains with and has not given to its Checkpointer. After a restart it would begin anew, and nothing
would fail.

    optimizers that step        their states and parameters are among the tensors of a checkpoint
    schedulers, GradScalers     those of such optimizers are given, or their state is in `extra`
    averages, target networks   a model of a given one's class that changes, too
    buffers, hooks              buffers with persistent=False that change; DDP's communication hooks with a state
    gradients set to zero       of parameters that a step does not use: an optimizer steps them, with zeros

It is told, not refused: a program may save it in another way, or set it by the number of the step.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..sharded.held import local_of
from ..state import several
from ..state.packing import Packed
from ..state.state import bare

_OFTEN = 2
"""An optimizer that has stepped in fewer steps of the loop may belong to one batch, as for an attack on the model."""
_LARGEST_BUFFER = 1 << 20
_KINDS = (LRScheduler, torch.amp.GradScaler, DistributedDataParallel)


class Saved:
    """The tensors and texts that a checkpoint of now would have."""

    def __init__(self, parts: Mapping[str, Any], shared: Packed, own: Packed) -> None:
        self._tensors = [one for one in (*shared.tensors.values(), *own.tensors.values()) if one.numel()]
        self._places = {one.data_ptr() for one in self._tensors}
        trees = {**shared.tree, **own.tree}
        # A wrapper's state is searched for what is in it, and so is `extra`. Of torch's own kinds it is known.
        known = (nn.Module, torch.optim.Optimizer, LRScheduler, torch.amp.GradScaler)
        wrapped = [tree for name, tree in trees.items() if not isinstance(parts.get(name), known)]
        self._dicts = {keys for tree in wrapped for keys in _keys(tree)}

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor`, or one that is equal, is saved."""
        tensor = local_of(tensor).detach()
        if self.has_itself(tensor):
            return True
        like = (one for one in self._tensors if one.shape == tensor.shape and one.dtype == tensor.dtype)
        return any(torch.equal(one.to(tensor.device), tensor) for one in like)

    def has_itself(self, tensor: torch.Tensor) -> bool:
        """Whether this very tensor is saved. One without values always is."""
        return not tensor.numel() or tensor.device.type == "meta" or tensor.data_ptr() in self._places

    def has_state(self, one: Any) -> bool:
        """Whether a dict with the keys of the state of `one` is saved."""
        return frozenset(map(str, one.state_dict())) in self._dicts


def _keys(tree: Any) -> Iterator[frozenset[str]]:
    """The keys of each dict in an encoded state."""
    if isinstance(tree, dict):
        (pairs,) = tree.values() if list(tree) in (["$dict"], ["$ordered"]) else (tree.items(),)
        found = {str(key): value for key, value in pairs}
        yield frozenset(found)
        tree = list(found.values())
    for inner in tree if isinstance(tree, list) else ():
        yield from _keys(inner)


def _inside(value: Any, depth: int = 4) -> Iterator[Any]:
    """`value` and what it keeps in its attributes, as a scheduler its schedulers. Not what is inside a module."""
    yield value
    if depth == 0 or isinstance(value, nn.Module | torch.Tensor | torch.optim.Optimizer):
        return
    if isinstance(value, dict):
        kept: Iterable[Any] = value.values()
    else:
        kept = value if isinstance(value, list | tuple) else getattr(value, "__dict__", {}).values()
    for inner in kept:
        if isinstance(inner, list | tuple | dict | LRScheduler | torch.amp.GradScaler):
            yield from _inside(inner, depth - 1)


def _shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, param.shape) for name, param in model.named_parameters()]


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [local_of(one) for one in (*model.parameters(), *model.buffers())]


def _version(model: nn.Module) -> int:
    return sum(tensor._version for tensor in _tensors(model) if not tensor.is_inference())


class Unsaved:
    """Looks for what is left out of `parts`, in the steps number 1, 2, 4, 8, … of this process."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._parts = parts
        self._steps = 0
        self._told: set[Any] = set()
        self._stepped: dict[int, tuple[weakref.ref[Any], int, int]] = {}
        """Of each optimizer by its identity: itself, its steps of the loop, and the newest of them."""
        self._others: list[tuple[weakref.ref[nn.Module], int]] = []
        """Models of the class of a given one, and their versions."""
        self._scalers: list[tuple[weakref.ref[Any], dict[str, Any]]] = []
        self._kept: list[tuple[torch.Tensor, weakref.ref[torch.Tensor]]] = []
        """Parameters, and the gradients that they had at the last look."""
        self._buffers: dict[str, tuple[torch.Tensor, int]] = {}
        """Buffers as they were at the last look, and in how many looks they had changed."""
        itself = weakref.ref(self)

        def after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            if (unsaved := itself()) is not None:
                unsaved._note(optimizer)

        # It stays. Removed by the garbage collector within a step, it would break torch's loop over the hooks.
        register_optimizer_step_post_hook(after_step)

    def _note(self, optimizer: Any) -> None:
        _, count, newest = self._stepped.get(id(optimizer), (None, 0, -1))
        if newest != self._steps:
            self._stepped[id(optimizer)] = weakref.ref(optimizer), count + 1, self._steps

    def due(self) -> bool:
        """Called once for each finished step: whether to look now."""
        self._steps += 1
        return self._steps & (self._steps - 1) == 0

    def look(self, shared: Packed, own: Packed) -> list[str]:
        """A sentence about each thing that is not in the state of now, which was captured as `shared` and `own`; each
        is told once."""
        saved = Saved(self._parts, shared, own)
        alive = []
        if self._steps == 1:
            alive = self._alive()
            self._others = [(weakref.ref(one), _version(one)) for one in self._unknown(alive, saved)]
        found = {**self._of_optimizers(saved), **self._of_helpers(alive, saved), **self._of_models()}
        found.update({**self._of_scalers(alive, saved), **self._of_buffers(saved), **self._of_gradients()})
        new = {what: sentence for what, sentence in found.items() if what not in self._told}
        self._told |= new.keys()
        return list(new.values())

    def _alive(self) -> list[Any]:
        """All objects of _KINDS, and of the classes of given models. Their classes are asked, not each of some 300,000
        objects: that took half a second of the first step."""
        objects = gc.get_objects()
        # By identity: a class may have a metaclass that cannot be hashed.
        kinds = {id(kind): kind for kind in map(type, objects)}
        wanted = {number for number, kind in kinds.items() if issubclass(kind, _KINDS)} | set(map(id, self._classes()))
        return [one for one in objects if id(type(one)) in wanted]

    def _models(self) -> list[nn.Module]:
        model = self._parts.get("model")
        each = model.by_name.values() if isinstance(model, several.Models) else [model]
        return [bare(one) for one in each if isinstance(one, nn.Module)]

    def _classes(self) -> tuple[type, ...]:
        return tuple({type(model) for model in self._models()})

    def _given(self) -> set[int]:
        return {id(one) for part in self._parts.values() for one in _inside(part)}

    def _of_optimizers(self, saved: Saved) -> dict[Any, str]:
        found: dict[Any, str] = {}
        given = self._given()
        for number, (reference, count, _) in list(self._stepped.items()):
            optimizer = reference()
            if optimizer is None:
                del self._stepped[number]
            elif count >= _OFTEN and (sentence := _of_one(optimizer, number in given, saved)):
                found["optimizer", number] = sentence
        return found

    def _of_helpers(self, alive: list[Any], saved: Saved) -> dict[Any, str]:
        """Of schedulers and hooks among `alive`."""
        found: dict[Any, str] = {}
        known = self._given()
        alive = [one for one in alive if id(one) not in known]
        ours = known | self._stepped.keys()
        schedulers = [one for one in alive if isinstance(one, LRScheduler) and id(one.optimizer) in ours]
        parts = {id(part) for one in schedulers for part in _inside(one) if part is not one}
        for scheduler in schedulers:
            if id(scheduler) not in parts and not saved.has_state(scheduler):
                found["scheduler", id(scheduler)] = (
                    f"the learning rate's {type(scheduler).__name__} is in no checkpoint, so it begins anew after a "
                    "restart: give scheduler=..., unless the program sets it by the number of the step"
                )
        for ddp in (one for one in alive if isinstance(one, DistributedDataParallel)):
            is_ours = any(map(saved.has_itself, ddp.parameters()))
            for hook, state in vars(ddp).get("_comm_hooks") or () if is_ours else ():
                if state is not None and not isinstance(state, torch.distributed.ProcessGroup):
                    found["hook", id(state)] = (
                        f"DDP's communication hook {getattr(hook, '__name__', hook)} has a state "
                        f"({type(state).__name__}), which no checkpoint holds: it begins anew after a restart, and the "
                        "next steps are not those of an undisturbed run to the bit"
                    )
        return found

    def _unknown(self, alive: list[Any], saved: Saved) -> list[nn.Module]:
        """The models among `alive` that look like a given one and have tensors of their own."""
        models = self._models()
        known = {id(module) for model in models for module in model.modules()}
        shapes = [_shapes(model) for model in models]
        # Another thread may be making one at this moment.
        made = [one for one in alive if isinstance(one, nn.Module) and "_parameters" in vars(one)]
        found = [one for one in made if type(one) in self._classes()]
        found = [one for one in found if id(one) not in known and (mine := _shapes(one)) and mine in shapes]
        return [one for one in found if not all(map(saved.has_itself, _tensors(one)))]

    def _of_scalers(self, alive: list[Any], saved: Saved) -> dict[Any, str]:
        """Of those that were `alive` at the first look, and have another state at the second."""
        known = self._given()
        for one in alive:
            if isinstance(one, torch.amp.GradScaler) and one.is_enabled() and id(one) not in known:
                self._scalers.append((weakref.ref(one), one.state_dict()))
        found: dict[Any, str] = {}
        for reference, before in self._scalers:
            one = reference()
            if one is not None and one.state_dict() != before and not saved.has_state(one):
                found["scaler", id(one)] = (
                    "a GradScaler is in use that is in no checkpoint, so its scale begins anew after a restart: give "
                    "scaler=..."
                )
        return found

    def _of_models(self) -> dict[Any, str]:
        found: dict[Any, str] = {}
        for reference, version in self._others:
            if (one := reference()) is not None and _version(one) != version:
                found["model", id(one)] = (
                    f"a second {type(one).__name__} like the given model changes in training and is in no checkpoint: "
                    "give an average as ema=..., a target network in model={'model': ..., 'target': ...}"
                )
        return found

    def _of_gradients(self) -> dict[Any, str]:
        """Of gradients that are the same tensors as at the last look: zero_grad() did not set them to None."""
        kept = [grad for param, before in self._kept if (grad := param.grad) is not None and before() is grad]
        given = [one for one in self._parts.values() if isinstance(one, torch.optim.Optimizer)]
        params = [param for one in given for group in one.param_groups for param in group["params"]]
        self._kept = [(param, weakref.ref(param.grad)) for param in params if param.grad is not None]
        if "gradients" in self._parts or all(local_of(grad).any() for grad in kept):
            return {}
        return {
            "gradients": "gradients are set to zero, not to None, and the optimizer steps parameters that the pass did "
            "not use: after a restart these have no gradient and are left out until they have one; give grads=True, or "
            "call zero_grad() as it is by default"
        }

    def _of_buffers(self, saved: Saved) -> dict[Any, str]:
        """Of buffers that no state_dict() has. A cache that is made once, or made again as it was, is no loss."""
        found: dict[Any, str] = {}
        now: dict[str, tuple[torch.Tensor, int]] = {}
        for name, buffer in self._unsaved_buffers():
            before, changes = self._buffers.get(name, (None, 0))
            if before is not None and before.shape == buffer.shape and not torch.equal(before, buffer):
                changes += 1
                if changes >= _OFTEN and not saved.has(buffer):
                    found["buffer", name] = (
                        f"the buffer {name} of the model changes in training and is in no checkpoint "
                        "(persistent=False), so it begins anew after a restart: make it persistent"
                    )
            now[name] = buffer.detach().clone(), changes
        self._buffers = now
        return found

    def _unsaved_buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        for model in self._models():
            for place, module in model.named_modules():
                for name in sorted(vars(module).get("_non_persistent_buffers_set") or ()):
                    buffer = module._buffers.get(name)
                    if buffer is not None and buffer.device.type != "meta" and buffer.nbytes <= _LARGEST_BUFFER:
                        yield f"{place}.{name}" if place else name, local_of(buffer)


def _of_one(optimizer: Any, given: bool, saved: Saved) -> str | None:
    """What of an optimizer that steps is not saved."""
    kind = type(optimizer).__name__
    params = [param for group in optimizer.param_groups for param in group["params"]]
    lost = [param for param in params if not saved.has(param)]
    states = [value for state in optimizer.state.values() for value in state.values()]
    if not given and not all(saved.has(value) for value in states if isinstance(value, torch.Tensor)):
        both = "states and parameters" if lost else "states"
        model = ", and its model as one of model={...}" if lost else ""
        return (
            f"an optimizer steps ({kind}) whose {both} are in no checkpoint: after a restart they begin anew; give it "
            f"as one of optimizer={{...}}{model}"
        )
    if lost:
        shapes = ", ".join(str(list(param.shape)) for param in lost[:3]) + (", ..." if len(lost) > 3 else "")
        return (
            f"the optimizer {kind} steps parameters (of shape {shapes}) that are in no checkpoint: after a restart "
            "they begin anew; give what they belong to in model=..., or put them into extra="
        )
    return None
