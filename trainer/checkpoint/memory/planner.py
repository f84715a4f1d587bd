"""What the next snapshot copies, and how: the state is captured, the image planned anew if anything has moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..format.plan import Layout, plan
from ..nodes.nodes import Nodes
from ..sharded.layouts import Layouts
from ..state import rng, several
from ..state.packing import Led, Packed, Packer, Steadiness
from ..state.state import Stateful, capture, capture_own, steadiness
from .copier import Copier
from .cuda import copier_for, devices_of
from .image import Image, is_on_gpu, on_devices
from .walks import Walked

_PROBES = 2


class NoSnapshots(Exception):
    """There can be no snapshots of this state; the text says why."""


@dataclass(slots=True)
class Job:
    """A snapshot to be copied."""

    step: int
    pin: bool
    owed: bool
    image: Image
    copier: Copier
    tree: Any
    generators: dict[str, Any]
    own: Packed
    watched: list[tuple[torch.Tensor, int]]
    """The steady tensors that are copied later, with their versions at the capture."""
    at_once: bool = False
    """Whether nothing may go on before it is copied, since no optimizer will tell of its next step."""
    moved: frozenset[int] | None = None
    """The addresses of those that had changed when the optimizer's next step began; None if that has not begun."""

    @property
    def is_gated(self) -> bool:
        """Whether the next step, if it was told of, cannot have changed what was copied."""
        return self.image.held or self.at_once or self.moved is not None

    def changed(self) -> frozenset[int]:
        """The addresses of those that have changed by now."""
        return frozenset(tensor.data_ptr() for tensor, version in self.watched if tensor._version != version)


class Planner:
    """Plans the snapshots of `parts` on one rank."""

    def __init__(
        self,
        parts: Mapping[str, Stateful],
        rank: int,
        world_size: int,
        spare: bool,
        led: Led,
        layouts: Layouts | None,
        nodes: Nodes | None = None,
    ) -> None:
        self.unplanned = False
        """Whether the newest snapshot that was due was left out because the ranks have not agreed on its layout."""
        self.copier: Copier | None = None
        self.image: Image | None = None
        self.stepped = False
        """Whether an optimizer has told of a step since the last snapshot."""
        self.unseen = False
        """Whether there are steps that no optimizer tells of: those of a CUDA graph."""
        self._parts, self._rank, self._world_size, self._spare = parts, rank, world_size, spare
        self._walked = walked = Walked(model) if isinstance(model := parts.get("model"), nn.Module) else None
        slices = (layouts or Layouts()).slices.held
        self._packer = Packer(self._steadiness, led, slices, lambda: walked and walked.state)
        self._layouts, self._nodes = layouts, nodes or Nodes()
        self.whole = False
        """Whether another node needs the whole file of this rank: the state is sharded."""
        self._cut: Packed | None = None
        self._kept: list[Layout] = []
        """On several nodes, the layout of `_cut` on each node that keeps it."""
        self._unsteady: frozenset[int] = frozenset()
        """The addresses of tensors that were seen to change between a snapshot and the optimizer's next step."""
        self._probes: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Small tensors that every step changes, and what they were at the last snapshot."""

    def job(self, step: int, extra: Any, pin: bool, owed: bool) -> Job | None:
        """The present state as a snapshot. None if the ranks have not agreed on its layout."""
        of_model = None if self._walked is None else self._walked.state_dict
        shared, generators = capture(self._parts, step, extra, self._packer, of_model), rng.capture()
        layout, image = self._layout(shared), self.image
        self.unplanned = layout is None
        if layout is None:
            return None
        fresh = image is None or image.specs is not shared.specs or image.layout is not layout
        copier = self._copier_for(shared) if fresh or self.copier is None else self.copier
        copier.join()
        doubtful = copier.by_steps and self._is_doubtful()
        held = copier.by_steps and copier.holds(lambda: on_devices(shared, layout, self._rank), self.unseen)
        if fresh or image is None or image.held != held:
            # Nothing holds the last one while the next one is made: each may be as large as the state.
            image = self.image = None
            copier.forget()
            image = self.image = self._planned(shared, layout, copier, held)
        image.stage(shared)
        own = capture_own(self._rank, shared, self._parts)
        own = replace(own, tensors={name: _copied(tensor) for name, tensor in own.tensors.items()})
        if copier.by_steps:
            self._probe(shared, fresh)
        later = self._packer.steady if copier.overlaps and not image.held else ()
        tensors = (shared.tensors[name] for name in later)
        watched = [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]
        at_once = (self.unseen or doubtful) and not image.held
        return Job(step, pin, owed, image, copier, shared.tree, generators, own, watched, at_once)

    def give_up(self, addresses: Iterable[int]) -> None:
        """The tensors at these addresses are not steady."""
        self._unsteady |= frozenset(addresses)
        self.forget()

    def forget(self) -> None:
        """The next snapshot is planned anew."""
        self._packer.forget()

    def _copier_for(self, shared: Packed) -> Copier:
        devices = devices_of(shared.tensors.values())
        if self.copier is None or not self.copier.is_for(devices):
            if self.copier is not None:
                self.copier.forget()
            self.copier = copier_for(devices, self._spare)
            groups = [g for one in several.values("optimizer", self._parts) for g in getattr(one, "param_groups", ())]
            # Said of an optimizer whose steps are to be part of a CUDA graph.
            self.unseen |= bool(devices) and any(group.get("capturable") for group in groups)
        return self.copier

    def _planned(self, shared: Packed, layout: Layout, copier: Copier, held: bool) -> Image:
        if held:
            try:
                devices = frozenset(devices_of(shared.tensors.values()))
                return Image(shared, layout, self._rank, self._packer.steady, devices)
            except torch.OutOfMemoryError:
                copier.cannot_hold()
        return Image(shared, layout, self._rank, self._packer.steady)

    def _is_doubtful(self) -> bool:
        """Whether steps may have happened that no optimizer has told of. Certain ones are noticed for good."""
        stepped, self.stepped = self.stepped, False
        if stepped or self.unseen:
            return False
        # A GradScaler leaves steps out as well: then nothing has changed.
        self.unseen = any(not torch.equal(live, before) for live, before in self._probes)
        return not self._probes

    def _probe(self, shared: Packed, fresh: bool) -> None:
        if fresh:
            steady = [name for name in self._packer.steady if shared.tensors[name].numel()]
            found = [(name.startswith("model"), shared.tensors[name]) for name in steady]
            small = sorted((one for one in found if is_on_gpu(one[1])), key=lambda one: (one[0], one[1].numel()))
            # The optimizer's first: a learning rate may be 0.
            self._probes = [(tensor, tensor.clone()) for _, tensor in small[:_PROBES]]
        for live, before in self._probes:
            before.copy_(live)

    @property
    def elsewhere(self) -> Layout | None:
        """The layout of the newest snapshot on the node that keeps it, too."""
        return self._kept[1] if self._kept else None

    def _layout(self, shared: Packed) -> Layout | None:
        if self._nodes.several:
            return self._layout_here(shared)
        if self._layouts is not None:
            return self._layouts.known(shared, self._rank, self._world_size)
        if self.image is not None and self.image.specs is shared.specs:
            return self.image.layout
        return plan(shared.specs, self._world_size, shared.led)

    def _layout_here(self, shared: Packed) -> Layout | None:
        self.whole = bool(shared.placed) or (self._layouts is not None and self._layouts.is_sharded)
        if self.whole:
            return self._layout_of_all(shared)
        known = self._cut
        if known is None or known.specs is not shared.specs or known.led != shared.led:
            nodes = self._nodes
            among = [nodes.ranks(node) for node in nodes.keepers]
            self._kept = [plan(shared.specs, self._world_size, shared.led, ranks) for ranks in among]
            self._cut = shared
        keepers = self._nodes.keepers
        return self._kept[keepers.index(node) if (node := self._nodes.of[self._rank]) in keepers else 0]

    def _layout_of_all(self, shared: Packed) -> Layout | None:
        """Each node has a part, and gets that of another one."""
        if self._nodes.count > 2 and not self._nodes.ring:
            raise NoSnapshots("no snapshots: the state has become sharded, over more than two nodes, since restore()")
        assert self._layouts is not None
        layout = self._layouts.known(shared, self._rank, self._world_size)
        self._kept, self._cut = [layout] * 2 if layout is not None else [], None
        return layout

    def _steadiness(self) -> Steadiness:
        steady = steadiness(self._parts)
        return lambda path, tensor: tensor.data_ptr() not in self._unsteady and steady(path, tensor)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
