"""The steps of a script that does not know us. Hooks see them; they are set when the script imports torch.

The hooks do not import torch: a finder notices when the script imports it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import weakref
from collections.abc import Iterator
from types import FrameType, ModuleType
from typing import Any, Protocol

from ...rundir.codes import Doing
from .. import torch_patches
from ..imports import after_import

MOST_ACCUMULATED = 256
"""After this many backward passes, a torch optimizer that has never stepped is not the one that trains."""


_unseen = False


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Steps and backward passes in the block are none: what they change is put back."""
    global _unseen
    _unseen = True
    try:
        yield
    finally:
        _unseen = False


class Listener(Protocol):
    def grouped(self, rank: int) -> None: ...
    def hooked(self, count: int, restored: int | None, optimizer: Any) -> None: ...
    def hooked_backward(self, entered: bool) -> None: ...
    def now(self, doing: Doing) -> None: ...


class _Optimizers:
    """Whether torch optimizers were made and have stepped in this process. If there are none, the script has a class of
    its own (as Muon), or no optimizer. Then each of its backward passes counts as a step, because nothing tells
    more."""

    def __init__(self) -> None:
        self.made = self.stepped = False


def watch_torch(listener: Listener) -> None:
    """Once the script has imported torch, `listener` is told of the steps of its first optimizer (once that is gone, of
    the next one that steps), and of backward passes, and of what takes long: importing torch, compiling, evaluating.
    The stores where ranks meet are private."""
    optimizers = _Optimizers()
    if "torch" not in sys.modules:
        over = functools.partial(_now, listener, Doing.NONE)
        after_import({"torch": over}, lambda name: listener.now(Doing.IMPORTING))
    after_import(
        {
            "torch._dynamo.callback": functools.partial(torch_patches.follow_compilations, told=listener.now),
            "torch.optim.optimizer": functools.partial(_hook_steps, listener=listener, optimizers=optimizers),
            "torch.autograd": functools.partial(_hook_backward, listener=listener, optimizers=optimizers),
            "torch.nn.modules.module": functools.partial(_hook_eval, listener=listener, optimizers=optimizers),
            "torch.distributed.rendezvous": functools.partial(_hook_rendezvous, listener=listener),
        }
    )


def _now(listener: Listener, doing: Doing, module: ModuleType) -> None:
    listener.now(doing)


def _hook_eval(module: ModuleType, listener: Listener, optimizers: _Optimizers) -> None:
    """A model that has trained and is put in evaluation mode, evaluates: until its next step, as far as people see."""
    evaluate = module.Module.eval

    @functools.wraps(evaluate)
    def evaluates(self: Any) -> Any:
        # torch.compile may trace this call. Then it finds the original alone.
        if not sys.modules["torch"].compiler.is_compiling() and optimizers.stepped:
            listener.now(Doing.EVALUATING)
        return evaluate(self)

    module.Module.eval = evaluates


def _hook_rendezvous(module: ModuleType, listener: Listener) -> None:
    torch_patches.private_stores(module)
    torch_patches.own_stores(module, listener.grouped)


def _hook_steps(module: ModuleType, listener: Listener, optimizers: _Optimizers) -> None:
    # Weak: an optimizer that the script has let go of frees its parameters. A dead one is None, never another object
    # that has got its address.
    counted: weakref.ref[Any] | None = None
    count, restored = 0, None

    def stepped(optimizer: Any, args: Any, kwargs: Any) -> None:
        nonlocal counted, count, restored
        one = counted() if counted is not None else None
        if _unseen or (one is None and _only_fills()):
            return
        optimizers.stepped = True
        if one is None:
            # The first one, or the next stage of a training, whose count goes on: the true step never goes back.
            restored = _steps_before(optimizer) if counted is None else restored
            one, counted = optimizer, weakref.ref(optimizer)
        # With two optimizers (a GAN) only the first one counts. Otherwise each step would count twice.
        if optimizer is one:
            count += 1
            listener.hooked(count, restored, optimizer)

    def forget() -> None:
        nonlocal counted
        counted = None

    made = module.Optimizer.__init__

    @functools.wraps(made)
    def make(*args: Any, **kwargs: Any) -> None:
        optimizers.made = True
        made(*args, **kwargs)

    module.Optimizer.__init__ = make
    module.register_optimizer_step_post_hook(stepped)
    # In a fork, the optimizer that steps first counts.
    os.register_at_fork(after_in_child=forget)


def _only_fills() -> bool:
    """Whether the step that is made now only fills an optimizer's state, before a load."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != torch_patches.FILLS:
        frame = frame.f_back
    return frame is not None


def _steps_before(optimizer: Any) -> int | None:
    """The steps before this process's first one, as the restored state counts them. None for an optimizer that does not
    count."""
    for state in optimizer.state.values():
        if isinstance(state, dict) and "step" in state:
            # This is read after the first step. So that step is already in the count.
            return max(0, int(state["step"]) - 1)
    return None


def _hook_backward(module: ModuleType, listener: Listener, optimizers: _Optimizers) -> None:
    backward = module.backward
    within = count = unseen = 0

    @functools.wraps(backward)
    def around(*args: Any, **kwargs: Any) -> Any:
        # A pass may have others within: checkpointed activations.
        nonlocal within, count, unseen
        if _unseen:
            return backward(*args, **kwargs)
        within += 1
        listener.hooked_backward(True)
        try:
            result = backward(*args, **kwargs)
        finally:
            within -= 1
            listener.hooked_backward(False)
        if not within and not optimizers.stepped:
            unseen += 1
            if not optimizers.made or unseen > MOST_ACCUMULATED:
                count += 1
                listener.hooked(count, None, None)
        return result

    module.backward = around  # type: ignore[attr-defined]
