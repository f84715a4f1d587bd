"""A run that goes on without a lost GPU: on the devices that are left, with fewer ranks if those are too few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from supervisor.attempt.gpus import ORDER, VISIBLE, Device, are_numbers, in_one_order
from supervisor.core.model import Verdict
from supervisor.run.spec import Spec


def shrunk(spec: Spec, verdict: Verdict, environ: Mapping[str, str], known: Sequence[Device]) -> Spec | None:
    """`spec` without the device that `verdict` calls lost; `spec` itself if that is none of its devices. None if no
    device is left. `known` are its devices, as they were before the loss.

    The kernel or the driver has named the device by its PCI address. If not, it is the one with the failed rank's
    number, as programs choose it. Those that are left are named by their UUIDs, if they have some: the numbers mean
    others once the lost one is gone."""
    told = spec.devices or environ.get(VISIBLE, "")
    devices = told.split(",") if told else [str(d.index) for d in known] or [str(n) for n in range(spec.nproc)]
    lost = (verdict.rank or 0) % len(devices)
    # Else `known` is in NVML's order, and a number says which one of CUDA's.
    ordered = not are_numbers(devices) or in_one_order(known, environ.get(ORDER))
    all_known = len(known) == len(devices)
    if verdict.device and known and (ordered or all_known):
        lost = next((index for index, device in enumerate(known) if device.bus == verdict.device), -1)
        ordered = True
    if ordered and all_known and all(device.uuid for device in known):
        devices = [device.uuid for device in known]
    left = [device for index, device in enumerate(devices) if index != lost]
    if left == devices:
        return spec
    return replace(spec, nproc=min(spec.nproc, len(left)), devices=",".join(left)) if left else None


def told(spec: Spec) -> str:
    """The sentence on a run that goes on as `spec` says."""
    ranks = f"{spec.nproc} rank{'s' if spec.nproc > 1 else ''}"
    return f"a GPU is lost: the run goes on with {ranks}, on the devices {spec.devices}"
