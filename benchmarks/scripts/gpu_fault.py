"""A program whose GPU fails at step 20. It knows nothing of any supervisor.

python gpu_fault.py assert|illegal|oom|spin|two-nccl [--device cuda|cpu]     (cpu: the like of it, to try this file)
"""

from __future__ import annotations

import argparse
import ctypes
import os

import torch
from torch import nn

_PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry poke(.param .u64 where)
{
    .reg .u64 %at;
    .reg .u32 %one;
    ld.param.u64 %at, [where];
    mov.u32 %one, 1;
    st.global.u32 [%at], %one;
    ret;
}
"""


def _assert(x: torch.Tensor) -> None:
    table = torch.zeros(10, 4, device=x.device)
    nn.functional.embedding(torch.tensor([1, 99], device=x.device), table).sum().item()


def _illegal(x: torch.Tensor) -> None:
    """A kernel, made by the driver itself, writes where nothing is."""
    if x.device.type == "cpu":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    driver = ctypes.CDLL("libcuda.so.1")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    for code in (
        driver.cuModuleLoadData(ctypes.byref(module), ctypes.c_char_p(_PTX)),
        driver.cuModuleGetFunction(ctypes.byref(function), module, b"poke"),
    ):
        assert code == 0, f"the driver has no kernel for it: {code}"
    where = ctypes.c_uint64(0x10)
    arguments = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.byref(where), ctypes.c_void_p))
    one = [ctypes.c_uint(1)] * 6
    assert driver.cuLaunchKernel(function, *one, ctypes.c_uint(0), ctypes.c_void_p(), arguments, None) == 0
    x.sum().item()


def _oom(x: torch.Tensor) -> None:
    kept = [x]
    while True:
        kept.append(torch.empty(1 << (34 if x.is_cuda else 62), dtype=torch.uint8, device=x.device))


def _spin(x: torch.Tensor) -> None:
    if x.is_cuda:
        for _ in range(64):
            torch.cuda._sleep(1 << 40)
        torch.cuda.synchronize()
    while True:
        pass


def _two_nccl(x: torch.Tensor) -> None:
    """Two ranks of NCCL on one GPU, which NCCL refuses; started with two ranks."""
    import torch.distributed as dist

    dist.init_process_group("nccl" if x.is_cuda else "gloo")
    if not x.is_cuda:
        raise RuntimeError("NCCL error: invalid usage")
    dist.all_reduce(x)
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("fault")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    device = torch.device(given.device, 0) if given.device == "cuda" else torch.device("cpu")
    model = nn.Linear(256, 256).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    faults = {"assert": _assert, "illegal": _illegal, "oom": _oom, "spin": _spin, "two-nccl": _two_nccl}
    for step in range(1, 10_000):
        x = torch.randn(64, 256, device=device)
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 20:
            print(f"rank {os.environ.get('RANK', '-')}: {given.fault} at step {step}", flush=True)
            faults[given.fault](x)
        loss.item()


if __name__ == "__main__":
    main()
