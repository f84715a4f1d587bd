"""The state that a run needs to go on. It is gathered from the parts as one nested dict, and put back into them.

    shared (the same on every rank):  model  optimizer  scaler  scheduler  guard  replicas  ddp  parameters  made  step
                                      extra (several optimizers, ...: see several)
    per rank:                         rng  data  values marked PerRank  small buffers of the model (from rank 1 on)

Everything is compared before anything is put back, so a mismatch changes nothing. Then come model, optimizer,
scheduler, scaler, data, guard. The generators are last, because the other parts may draw from them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from ..checks.made import Made
from ..errors import CheckpointMismatch, StateError
from ..sharded.held import local_of
from . import mismatch, partial, rng, several
from .gradients import Waiting
from .packing import Packed, Steadiness, pack
from .parameters import Parameters, names_of, put_right, reordered, thawed
from .per_rank import Parts, as_loader, own_names, own_state

_ORDER = ("model", "optimizer", "scheduler", "scaler", "data", "gradients", "guard", "replicas")


class Stateful(Protocol):
    """Anything with the two methods that models, optimizers, schedulers and scalers have."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


def bare(model: nn.Module) -> nn.Module:
    """The model without DDP and torch.compile around it, so its keys do not depend on them."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def present(*, model: Any = None, grads: bool = False, **parts: Any) -> Parts:
    """The parts that there are, by name. Models are bare. A part may be a mapping (see several). `grads`: the
    gradients are a part, too."""
    everything: dict[str, Any] = {"model": several.as_one(_bare(model))}
    for name, part in parts.items():
        everything.update(several.named(name, part) if name in several.NAMED else {name: part})
    there = Parts({name: part for name, part in everything.items() if part is not None})
    if "data" in there:
        there["data"] = as_loader(there["data"])
    if grads:
        there["gradients"] = Waiting(dict(there))
    if isinstance(there.get("model"), nn.Module):
        there["made"] = Made(there["model"])
    for name in list(several.of("optimizer", there)):
        there[f"parameters{name.removeprefix('optimizer')}"] = Parameters(there.get("model"), there[name])
    return there


def _bare(model: Any) -> Any:
    if isinstance(model, Mapping):
        return {name: _bare(one) for name, one in model.items()}
    return bare(model) if isinstance(model, nn.Module) else model


Pack = Callable[[Any, str], Packed]
"""pack(), or one with a memory."""


def capture(
    parts: Mapping[str, Stateful],
    step: int,
    extra: Any,
    pack: Callable[[Any], Packed] = pack,
    of_model: Callable[[], Any] | None = None,
) -> Packed:
    """The shared state of `parts` after `step` steps, and the marked values in it. `of_model` returns the state
    of the model."""
    own = own_names(parts)
    found = {
        name: of_model() if name == "model" and of_model is not None else part.state_dict()
        for name, part in parts.items()
        if name not in own
    }
    # A module's is an OrderedDict, and takes any dict.
    state = {name: dict(value) if type(value) is OrderedDict else value for name, value in found.items()}
    return pack({**state, "step": step, "extra": extra})


def steadiness(parts: Mapping[str, Stateful]) -> Steadiness:
    """The tensors of `parts` that only an optimizer's step changes: the model's parameters and the optimizer's state,
    if the optimizer is torch's, which tells when it steps. Buffers are not among them: a forward pass changes them."""
    model, optimizers = parts.get("model"), several.values("optimizer", parts)
    if not optimizers or not all(isinstance(one, torch.optim.Optimizer) for one in optimizers):
        return lambda path, tensor: False

    weights = {local_of(p).data_ptr() for p in model.parameters()} if isinstance(model, nn.Module) else set()

    def is_steady(path: str, tensor: torch.Tensor) -> bool:
        part, _, rest = path.partition("/")
        if part == "model":
            return tensor.data_ptr() in weights
        return rest.startswith("state/") and part.partition(".")[0] == "optimizer"

    return is_steady


def capture_own(rank: int, shared: Packed, parts: Mapping[str, Stateful]) -> Packed:
    """The state of this rank alone, without its generators. `shared` was captured from `parts` at the same step."""
    names = sorted(shared.led) if rank else []
    buffers = {name.removeprefix("model/").replace("%40", "@"): shared.tensors[name] for name in names}
    own = pack(own_state(parts, shared.marked, buffers), f"rank{rank}")
    if own.marked:
        raise StateError(f"{next(iter(own.marked))} is a PerRank value in a state that is each rank's own already")
    return own


def capture_rank(
    rank: int, generators: dict[str, Any] | None = None, own: Packed | None = None, pack: Pack = pack
) -> Packed:
    """The state of this rank alone. `generators` come from rng.capture(); None: as they are now. `own` is the rest."""
    drawn = pack({"rng": generators or rng.capture()}, f"rank{rank}")
    if own is None:
        return drawn
    return Packed({**own.tree, **drawn.tree}, {**own.tensors, **drawn.tensors}, {**own.specs, **drawn.specs})


def check(parts: Mapping[str, Stateful], state: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """`state`, with the optimizer's in the order of its parameters here. CheckpointMismatch unless it is of this model
    and these optimizers. The text has all differences."""
    problems: list[str] = []
    if "model" in parts:
        made = parts.get("made")
        grown = made.grown(state) if isinstance(made, Made) else {}
        problems += mismatch.model_problems(parts["model"].state_dict(), state.get("model"), grown.keys())
    for name in several.of("optimizer", parts):
        if name not in state:
            problems.append(f"it holds no {several.told(name)} state")
            continue
        names = f"parameters{name.removeprefix('optimizer')}"
        ours, theirs = names_of(parts.get(names)), names_of(state.get(names))
        stored, others = reordered(state[name], theirs, ours)
        found = others or mismatch.optimizer_problems(parts[name], stored, ours, "model" in parts)
        problems += [f"{several.told(name)}: {problem}" for problem in found] if "." in name else found
        state = {**state, name: stored}
    if isinstance(waiting := parts.get("gradients"), Waiting):
        problems += waiting.check(state.get("gradients") or {})
    if problems:
        raise CheckpointMismatch(mismatch.sentence(where, problems))
    return state


def fitted(parts: Mapping[str, Stateful], state: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], list[str]]:
    """`state`, as far as it fits `parts`, and what they have else; and sentences about the differences."""
    found, told = dict(state), list[str]()
    if "model" in parts and state.get("model"):
        found["model"], told = partial.model(parts["model"].state_dict(), state["model"], where)
    for name in (name for name in several.of("optimizer", parts) if name in state):
        names = f"parameters{name.removeprefix('optimizer')}"
        theirs, ours = names_of(state.get(names)), names_of(parts.get(names))
        found[name], more = partial.optimizer(parts[name], state[name], theirs, ours)
        told += [f"{several.told(name)}: {text}" for text in more] if "." in name else more
    if parts.get("gradients") is not None and state.get("gradients"):
        found["gradients"] = partial.gradients(parts["gradients"], state["gradients"])
    return found, [f"{where}: {text}" for text in told]


def apply(parts: Mapping[str, Stateful], state: Mapping[str, Any], where: str, in_part: bool = False) -> list[str]:
    """Every part goes on from `state`. Returns a sentence for each part that was not restored because only one side has
    it. CheckpointMismatch if the state is of another model or optimizer; then nothing was changed. `in_part`: what fits
    is restored, and sentences tell of the rest."""
    missing: list[str] = []
    if in_part:
        state, missing = fitted(parts, state, where)
    else:
        state = check(parts, state, where)
        if isinstance(made := parts.get("made"), Made):
            made.grow(state)
    if "ddp" in parts:
        # No warning: without DDP, or before its first backward pass, there is no order.
        parts["ddp"].load_state_dict(state.get("ddp") or {})
    for name in (name for part in _ORDER for name in several.of(part, {**parts, **state})):
        ours, theirs = parts.get(name), state.get(name)
        # The state of a disabled GradScaler is an empty dict, and a fresh GradScaler refuses that.
        if ours is None or not theirs:
            if ours is not None and ours.state_dict():
                missing.append(f"{where} has no {several.told(name)} state: it starts afresh")
            elif theirs:
                missing.append(f"{where} has {several.told(name)} state that nothing here takes: it is left out")
        else:
            _load(ours, theirs, name, where)
    if not in_part:
        missing += filter(None, (thawed(part, state.get(name), where) for name, part in parts.items()))
    return missing


def _load(part: Stateful, stored: Any, name: str, where: str) -> None:
    try:
        part.load_state_dict(stored)
        put_right(part, stored)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split()) or repr(error)
        raise CheckpointMismatch(f"{where} does not fit this {several.told(name)}: {text}") from error
