"""Tensors as bytes and back, without a copy for contiguous tensors on the CPU."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import StateError
from ..format.plan import Spec

_libc = ctypes.CDLL(None)
_MADV_HUGEPAGE = 14
_PAGE = 4096
_HUGE_FROM = 4 << 20

_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
# An older torch lacks the newest types.
DTYPES = {name: getattr(torch, attribute) for name, attribute in _NAMES.items() if hasattr(torch, attribute)}
_BY_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


def spec_of(tensor: torch.Tensor, path: str) -> Spec:
    """The type and shape of `tensor`. StateError names `path` if a checkpoint cannot hold it."""
    if (why := _unstorable(tensor)) is not None:
        raise StateError(f"{path} {why}")
    return Spec(_BY_DTYPE[tensor.dtype], tuple(tensor.shape))


def _unstorable(tensor: torch.Tensor) -> str | None:
    """Why a checkpoint cannot hold `tensor`, or None."""
    if hasattr(tensor, "_local_tensor"):
        return "is sharded over ranks (a DTensor) where each rank saves its own: give .full_tensor() of it"
    kind = type(tensor)
    if tensor.is_nested or (tensor.layout != torch.strided and not hasattr(kind, "__tensor_flatten__")):
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        return f"is a {layout} tensor, not a dense one: store the dense tensors that it is made of"
    if tensor.is_quantized:
        return "is a quantized tensor: store .int_repr() of it, and its scale and zero point"
    if tensor.device.type == "meta":
        return "is on the meta device, so it has no values: call .to_empty(device=...) before restore()"
    if hasattr(kind, "__tensor_flatten__") or (tensor.numel() and tensor.data_ptr() == 0):
        return (
            f"is a {kind.__module__}.{kind.__qualname__}, a tensor that is made of other tensors (as 8-bit optimizer "
            "states are), which is not supported yet: use an optimizer or layer whose state is plain tensors"
        )
    if tensor.dtype not in _BY_DTYPE:
        other = " as torch.view_as_real() of it" if tensor.is_complex() else " as another type"
        return f"has type {tensor.dtype}, which safetensors cannot hold: store it{other}"
    return None


def as_saved(name: str) -> str:
    """The name of a model's parameter or buffer as state_dict() has it: torch's checkpoint_wrapper (activation
    checkpointing, `_CHECKPOINT_PREFIX`) leaves itself out there, and not in named_parameters()."""
    return name.replace("_checkpoint_wrapped_module.", "")


Place = tuple[Any, ...]


def place_of(tensor: torch.Tensor) -> Place:
    """What says where the values of `tensor` lie, and how."""
    return tensor.data_ptr(), tensor.stride(), tensor.dtype, tensor.shape, tensor.is_conj(), tensor.is_neg()


def lie_as(tensors: Sequence[torch.Tensor], before: Sequence[torch.Tensor], places: Sequence[Place]) -> bool:
    """Whether `tensors` lie where `before` did when `places` were their place_of(). They are the same objects nearly
    always, and less can change about those: it is asked at every snapshot."""
    if len(tensors) == len(before) and all(map(operator.is_, tensors, before)):
        return [(t.data_ptr(), t.stride(), t.dtype, t.shape) for t in tensors] == [place[:4] for place in places]
    return [place_of(tensor) for tensor in tensors] == list(places)


def view_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of `tensor` (CPU, contiguous), writable and not copied. The tensor must outlive the view."""
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr() if size else 0)).cast("B")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor's bytes lie in C order and are its values."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def flattened(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of `tensor` in C order, as its values; not copied if they lie so."""
    return tensor.detach().resolve_conj().resolve_neg().reshape(-1)


def bytes_of(tensor: torch.Tensor) -> tuple[torch.Tensor, memoryview]:
    """The bytes of `tensor`, in C order, and the tensor that owns them. Keep that tensor while the bytes are used."""
    if not (is_plain(tensor) and tensor.is_cpu):
        tensor = flattened(tensor).cpu().contiguous()
    return tensor, view_of(tensor)


def empty(spec: Spec) -> torch.Tensor:
    """A CPU tensor of that type and shape with undefined content. StateError if this torch has no such type."""
    if spec.dtype not in DTYPES:
        raise StateError(f"this torch ({torch.__version__}) has no type {spec.dtype}")
    # torch allocates: without its alignment a resumed run may differ from an uninterrupted one in the last bits.
    made = torch.empty(spec.shape, dtype=DTYPES[spec.dtype])
    _in_huge_pages(made.data_ptr(), spec.bytes)
    return made


def _in_huge_pages(address: int, size: int) -> None:
    """Memory that is not touched yet comes in pages of 2 MB, if the system has them: one page fault instead of 512. The
    faults take most of the time of reading into it. If the system refuses, nothing changes."""
    if size >= _HUGE_FROM:
        start = -(-address // _PAGE) * _PAGE
        _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(address + size - start), _MADV_HUGEPAGE)
