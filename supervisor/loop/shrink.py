"""A run that goes on without a lost GPU: on the devices that are left, with fewer ranks if those are too few."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from supervisor.attempt.gpus import DRIVER, Gpus
from supervisor.core.model import Verdict
from supervisor.run.spec import Spec

VISIBLE = "CUDA_VISIBLE_DEVICES"


def shrunk(spec: Spec, verdict: Verdict, environ: Mapping[str, str], driver: Path = DRIVER) -> Spec | None:
    """`spec` without the device that `verdict` calls lost. None if no device is left.

    The kernel or the driver has named the device by its PCI address. If not, it is the one with the failed rank's
    number, as programs choose it."""
    told = spec.devices or environ.get(VISIBLE, "")
    known = Gpus({VISIBLE: told} if told else {}).devices
    here = len(known) or len(list((driver / "gpus").glob("*")))
    devices = told.split(",") if told else [str(index) for index in range(max(here, spec.nproc))]
    by_address = [index for index, device in enumerate(known) if device.bus == verdict.device]
    lost = by_address[0] if by_address else (verdict.rank or 0) % len(devices)
    left = [device for index, device in enumerate(devices) if index != lost]
    return replace(spec, nproc=min(spec.nproc, len(left)), devices=",".join(left)) if left else None


def told(spec: Spec) -> str:
    """The sentence on a run that goes on as `spec` says."""
    ranks = f"{spec.nproc} rank{'s' if spec.nproc > 1 else ''}"
    return f"a GPU is lost: the run goes on with {ranks}, on the devices {spec.devices}"
