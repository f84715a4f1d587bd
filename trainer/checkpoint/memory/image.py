"""The image of a rank's file in memory: the bytes that a save would write. It is planned once and filled often.

    | header: index (planned), the rank's own state | shares of the shared state | own tensors | sidecar |
    '---------------------------- payload: the file, byte for byte --------------------'

Steady tensors do not change between two optimizer steps; the thread that fills copies them. All other tensors are
staged: the training thread copies them aside at once, and they are copied from there later.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Set

import torch

from ...rundir.files.codec import encode
from ..format.plan import Layout, Share, Spec
from ..format.shard import Entry, entry_of, header_of, index
from ..state.packing import Packed
from ..state.tensors import bytes_of, flattened, is_plain
from .segment import Buffer

_SMALL = 32_000
"""Up to this size torch copies in the calling thread. Above, it uses as many threads as training, and would disturb
them."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""(destination, source), both as bytes."""
Copy = Callable[[Buffer, torch.Tensor, list[Pair]], None]
"""Called with a buffer, its memory, and the pairs whose destinations are in it."""


def flat_bytes(tensor: torch.Tensor, share: Share) -> torch.Tensor:
    """`share` of `tensor` (contiguous) as bytes, not copied."""
    return tensor.detach().reshape(-1)[share.start : share.start + share.count].view(torch.uint8)


class Image:
    """Planned for one set of tensors: those of `shared`, as `layout` has them. `steady` names the steady ones."""

    def __init__(self, shared: Packed, layout: Layout, rank: int, steady: Set[str]) -> None:
        self.specs, self.layout = shared.specs, layout
        self._rank = rank
        mine = layout.shares[rank]
        shares = [share for share in mine if share.count]
        self._entries = [entry_of(share, layout.specs[share.name]) for share in mine]
        self._index = b""
        self._own_specs: dict[str, Spec] | None = None
        self._stage = {
            share.name: torch.empty_like(shared.tensors[share.name], memory_format=torch.contiguous_format)
            for share in shares
            if share.name not in steady
        }
        tensors = {**shared.tensors, **self._stage}
        self._plain: list[torch.Tensor] = []
        self._plain_at: list[int] = []
        self._awkward: list[tuple[int, torch.Tensor, Share]] = []
        at = 0
        for share in shares:
            tensor, size = tensors[share.name], share.count * tensors[share.name].element_size()
            if is_plain(tensor):
                self._plain.append(flat_bytes(tensor, share))
                self._plain_at.append(at)
            else:
                self._awkward.append((at, tensor, share))
            at += size
        self._shared_bytes = at
        self._pairs: dict[str, tuple[int, int, torch.Tensor, list[Pair]]] = {}

    def stage(self, shared: Packed) -> None:
        """The tensors that may change are copied aside, as they are now."""
        if self._stage:
            torch._foreach_copy_(list(self._stage.values()), [shared.tensors[name].detach() for name in self._stage])

    def header(self, own: Packed) -> bytes:
        if self._own_specs != own.specs:
            self._own_specs = dict(own.specs)
            entries = self._entries + [Entry(name, spec) for name, spec in own.specs.items()]
            self._index = index(entries, {"format": "pt", "rank": str(self._rank)})
        return header_of(self._index, {"state": encode(own.tree).decode()})

    def payload(self, header: bytes, own: Packed) -> int:
        """The bytes of the whole file."""
        return len(header) + self._shared_bytes + sum(spec.bytes for spec in own.specs.values())

    def fill(self, buffer: Buffer, header: bytes, own: Packed, sidecar: bytes, copy: Copy) -> None:
        """`buffer` holds the image: the file, and after it `sidecar`."""
        memory, pairs = self._placed(buffer, len(header))
        # Must be before copy(): after it, the state may change.
        for at, tensor, share in self._awkward:
            part = flattened(tensor)[share.start : share.start + share.count]
            start = len(header) + at
            memory[start : start + part.numel() * part.element_size()].copy_(part.contiguous().view(torch.uint8))
        copy(buffer, memory, pairs)
        buffer.memory[: len(header)] = header
        at = len(header) + self._shared_bytes
        for name, spec in own.specs.items():
            _alive, view = bytes_of(own.tensors[name])
            buffer.memory[at : at + spec.bytes] = view
            at += spec.bytes
        buffer.memory[at : at + len(sidecar)] = sidecar

    def _placed(self, buffer: Buffer, head: int) -> tuple[torch.Tensor, list[Pair]]:
        known = self._pairs.get(buffer.slot)
        if known is None or known[:2] != (buffer.serial, head):
            memory = torch.frombuffer(buffer.memory, dtype=torch.uint8)
            pairs = [
                (memory[head + at : head + at + source.numel()], source)
                for at, source in zip(self._plain_at, self._plain, strict=True)
            ]
            known = self._pairs[buffer.slot] = (buffer.serial, head, memory, pairs)
            # Otherwise a dropped buffer would stay mapped and keep its memory.
            buffer.releases.append(functools.partial(self._pairs.pop, buffer.slot, None))
        return known[2], known[3]


def copy_here(pairs: list[Pair]) -> None:
    """Each destination holds the bytes of its source; both are on the CPU. This thread alone copies, without the
    GIL."""
    small = [(target, source) for target, source in pairs if source.numel() <= _SMALL]
    if small:
        torch._foreach_copy_([target for target, _ in small], [source for _, source in small])
    for target, source in pairs:
        if source.numel() > _SMALL:
            ctypes.memmove(target.data_ptr(), source.data_ptr(), source.numel())
