"""The image of a rank's file in memory: the bytes that a save would write. It is planned once and filled often.

    | header: index (planned), the rank's own state | shares of the shared state | own tensors | sidecar |
    '---------------------------- payload: the file, byte for byte --------------------'

Steady tensors do not change between two optimizer steps; the thread that fills copies them. All other tensors are
staged: the training thread copies them aside at once, and they are copied from there later. An image that is held
stages all tensors; what lies on a GPU then is in one piece there.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable, Set

import torch

from ...rundir.files.codec import encode
from ..format.plan import ITEM_BYTES, Layout, Share, Spec
from ..format.shard import Entry, entry_of, header_of, index
from ..state.packing import Packed
from ..state.tensors import bytes_of, flattened, is_plain
from .segment import Buffer

_SMALL = 32_000
"""Up to this size torch copies in the calling thread. Above, it uses as many threads as training, and would disturb
them."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""(destination, source), both as bytes."""
Copy = Callable[[Buffer, torch.Tensor, list[Pair], list[Pair]], None]
"""Called with a buffer, its memory, and the pairs whose destinations are in it; the last ones differ each time."""


def flat_bytes(tensor: torch.Tensor, share: Share) -> torch.Tensor:
    """`share` of `tensor` (contiguous) as bytes, not copied."""
    return tensor.detach().reshape(-1)[share.start : share.start + share.count].view(torch.uint8)


def device_of(tensor: torch.Tensor) -> torch.device:
    return tensor.device


def is_on_gpu(tensor: torch.Tensor) -> bool:
    return device_of(tensor).type == "cuda"


def _piece(size: int, device: torch.device) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)


def on_devices(shared: Packed, layout: Layout, rank: int) -> dict[torch.device, int]:
    """By device, the bytes of this rank's shares that lie on it."""
    found: dict[torch.device, int] = {}
    for share in layout.shares[rank]:
        tensor = shared.tensors[share.name]
        device = device_of(tensor)
        found[device] = found.get(device, 0) + share.count * tensor.element_size()
    return found


class Image:
    """Planned for one set of tensors: those of `shared`, as `layout` has them. `steady` names the steady ones. With
    `held` there are none, and stage() copies everything."""

    def __init__(
        self, shared: Packed, layout: Layout, rank: int, steady: Set[str], held: Set[torch.device] = frozenset()
    ) -> None:
        """`held`: the devices on which the shares are staged in one piece; none: the image is not held."""
        self.specs, self.layout, self.held = shared.specs, layout, bool(held)
        self._rank = rank
        mine = layout.shares[rank]
        shares = [share for share in mine if share.count]
        self._entries = [entry_of(share, layout.specs[share.name]) for share in mine]
        self._index, self._apart = b"", b""
        self._header = b"", b""
        """The state of this rank alone that is in the newest header, and that."""
        self._own_specs: dict[str, Spec] | None = None
        self._stage: dict[str, torch.Tensor] = {}
        """Whole tensors, copied aside."""
        self._aside: list[tuple[Share, torch.Tensor]] = []
        """Shares as bytes, copied aside: each a piece of the memory for its device."""
        self._fixed: list[Pair] = []
        """Those of steady tensors, with what they are copied from."""
        self._plain: list[torch.Tensor] = []
        self._plain_at: list[int] = []
        self._awkward: list[tuple[int, torch.Tensor, Share]] = []
        pieces = {
            device: _piece(size, device) for device, size in on_devices(shared, layout, rank).items() if device in held
        }
        used = dict.fromkeys(pieces, 0)
        last: tuple[int, torch.device] | None = None
        at = 0
        self._led: list[tuple[Share, int]] = []
        """The shares that only this rank can write, wherever the others are written."""
        for share in shares:
            tensor = shared.tensors[share.name]
            if share.name in shared.led:
                self._led.append((share, at))
            size, device = share.count * tensor.element_size(), device_of(tensor)
            if device in pieces and is_plain(tensor):
                start = used[device]
                used[device] = start + size
                piece = pieces[device][start : start + size]
                if share.name in steady:
                    self._fixed.append((piece, flat_bytes(tensor, share)))
                else:
                    self._aside.append((share, piece))
                # Neighbours in the file are neighbours there: the more is copied at once.
                if last == (at, device):
                    start -= self._plain.pop().numel()
                else:
                    self._plain_at.append(at)
                self._plain.append(pieces[device][start : used[device]])
                last = at + size, device
            else:
                self._place(tensor, share, at, share.name in steady and not self.held)
            at += size
        self._shared_bytes = at
        self._pairs: dict[str, tuple[int, int, torch.Tensor, list[Pair]]] = {}

    def _place(self, tensor: torch.Tensor, share: Share, at: int, steady: bool) -> None:
        # Not plain and on a device: it is put in order there, by the stream that trains.
        if not steady or not (tensor.is_cpu or is_plain(tensor)):
            made = torch.empty_like(tensor, memory_format=torch.contiguous_format)
            tensor = self._stage[share.name] = made
        if is_plain(tensor):
            self._plain.append(flat_bytes(tensor, share))
            self._plain_at.append(at)
        else:
            self._awkward.append((at, tensor, share))

    def stage(self, shared: Packed) -> None:
        """The tensors that may change are copied aside, as they are now."""
        by_device: dict[torch.device, list[Pair]] = {}
        for pair in self._fixed:
            by_device.setdefault(device_of(pair[0]), []).append(pair)
        for name, made in self._stage.items():
            by_device.setdefault(device_of(made), []).append((made, shared.tensors[name].detach()))
        for share, piece in self._aside:
            by_device.setdefault(device_of(piece), []).append((piece, flat_bytes(shared.tensors[share.name], share)))
        for pairs in by_device.values():
            torch._foreach_copy_([to for to, _ in pairs], [of for _, of in pairs])

    def header(self, own: Packed) -> bytes:
        if self._own_specs != own.specs:
            self._own_specs = dict(own.specs)
            entries = self._entries + [Entry(name, spec) for name, spec in own.specs.items()]
            self._index = index(entries, {"format": "pt", "rank": str(self._rank)})
            led = [entry_of(share, self.layout.specs[share.name]) for share, _ in self._led]
            entries = led + [Entry(name, spec) for name, spec in own.specs.items()]
            self._apart = index(entries, {"format": "pt", "rank": str(self._rank)})
            self._header = b"", b""
        text = encode(own.tree)
        if text != self._header[0]:
            self._header = text, header_of(self._index, {"state": text.decode()})
        return self._header[1]

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
        at = len(header) + self._shared_bytes
        far, near = list[Pair](), list[tuple[int, torch.Tensor]]()
        for name, spec in own.specs.items():
            tensor = own.tensors[name]
            if tensor.is_cpu:
                near.append((at, tensor))
            elif spec.bytes:
                # A copy of the training stream's: only the copier knows when it is there.
                far.append((memory[at : at + spec.bytes], tensor.reshape(-1).view(torch.uint8)))
            at += spec.bytes
        copy(buffer, memory, pairs, far)
        buffer.memory[: len(header)] = header
        for start, tensor in near:
            _alive, view = bytes_of(tensor)
            buffer.memory[start : start + len(view)] = view
        buffer.memory[at : at + len(sidecar)] = sidecar

    def apart(self, buffer: Buffer, header: bytes, own: Packed, whole: bool) -> tuple[bytes, memoryview]:
        """The file that `buffer` holds, in two pieces, without the shares that any rank could write unless it is needed
        `whole`. The second piece lies in `buffer`."""
        file, at = memoryview(buffer.memory)[: self.payload(header, own)], len(header)
        if whole or not self._shared_bytes:
            return b"", file
        text = header_of(self._apart, {"state": encode(own.tree).decode()})
        sizes = [
            (at + start, share.count * ITEM_BYTES[self.layout.specs[share.name].dtype]) for share, start in self._led
        ]
        return text + b"".join(file[start : start + size] for start, size in sizes), file[at + self._shared_bytes :]

    def _placed(self, buffer: Buffer, head: int) -> tuple[torch.Tensor, list[Pair]]:
        known = self._pairs.get(buffer.slot)
        if known is None or known[:2] != (buffer.serial, head):
            memory = torch.frombuffer(buffer.memory, dtype=torch.uint8)
            pairs = [
                (memory[head + at : head + at + source.numel()], source)
                for at, source in zip(self._plain_at, self._plain, strict=True)
            ]
            known = self._pairs[buffer.slot] = (buffer.serial, head, memory, pairs)
            # Otherwise a dropped buffer would stay mapped and keep its memory. This image is not kept by it.
            buffer.releases["pairs"] = functools.partial(_forget, weakref.ref(self), buffer.slot)
        return known[2], known[3]


def _forget(image: weakref.ref[Image], slot: str) -> None:
    """The image, if it is still there, holds nothing of the memory of `slot`."""
    if (itself := image()) is not None:
        itself._pairs.pop(slot, None)


def copy_here(pairs: list[Pair]) -> None:
    """Each destination holds the bytes of its source; both are on the CPU. This thread alone copies, without the
    GIL."""
    small = [(target, source) for target, source in pairs if source.numel() <= _SMALL]
    if small:
        torch._foreach_copy_([target for target, _ in small], [source for _, source in small])
    for target, source in pairs:
        if source.numel() > _SMALL:
            ctypes.memmove(target.data_ptr(), source.data_ptr(), source.numel())
