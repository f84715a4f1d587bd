"""Tensors as bytes and back, without a copy for contiguous tensors on the CPU."""

from __future__ import annotations

import ctypes

import torch

from ..errors import StateError
from ..format.plan import Share, Spec

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
    if hasattr(tensor, "_local_tensor"):
        raise StateError(f"{path} is sharded over ranks; only replicated (DDP) or single-process state can be saved")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise StateError(
            f"{path} is not a plain dense tensor ({tensor.layout}, {tensor.device}); store .to_dense() of it"
        )
    if tensor.dtype not in _BY_DTYPE:
        raise StateError(f"{path} has type {tensor.dtype}, which safetensors cannot hold")
    return Spec(_BY_DTYPE[tensor.dtype], tuple(tensor.shape))


def view_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of `tensor` (CPU, contiguous), writable and not copied. The tensor must outlive the view."""
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr() if size else 0)).cast("B")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor's bytes lie in C order and are its values."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def bytes_of(tensor: torch.Tensor, share: Share) -> tuple[torch.Tensor, memoryview]:
    """The bytes of `share` of `tensor`, in C order, and the tensor that owns them. Keep that tensor while the bytes are
    used."""
    if share == Share(share.name, 0, tensor.numel()) and is_plain(tensor) and tensor.is_cpu:
        return tensor, view_of(tensor)
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    part = flat[share.start : share.start + share.count].cpu().contiguous()
    return part, view_of(part)


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
