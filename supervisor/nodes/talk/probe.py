"""The proof that two nodes share a folder, and run the same: a file that only the leader has made, and versions."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import sys
from importlib import metadata
from pathlib import Path

from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir

_LARGEST = 1 << 24


class Probe:
    """A file in the run's folder, made when a leader begins."""

    def __init__(self, run: RunDir) -> None:
        """OSError if it cannot be made."""
        for old in run.path.glob(".probe-*"):
            old.unlink(missing_ok=True)
        self.name, self.nonce = f".probe-{secrets.token_hex(8)}", secrets.token_hex(16)
        (run.path / self.name).write_text(self.nonce)

    def close(self, run: RunDir) -> None:
        with contextlib.suppress(OSError):
            (run.path / self.name).unlink(missing_ok=True)


def shares(run: RunDir, name: str, nonce: str) -> bool:
    """Whether that file of the leader is in the folder here, too."""
    with contextlib.suppress(OSError):
        return (run.path / Path(name).name).read_text() == nonce
    return False


def about(command: tuple[str, ...], module: bool, cwd: str) -> dict[str, str]:
    """What must be the same on all nodes: the versions, and the script."""
    found = {"Python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("torch", "supervise"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    found["the script"] = command[0]
    if not module:
        with contextlib.suppress(OSError):
            script = Path(cwd, command[0])
            if script.stat().st_size <= _LARGEST:
                found["the script's digest"] = hashlib.sha256(script.read_bytes()).hexdigest()[:12]
    return found


def about_spec(spec: Spec) -> dict[str, str]:
    return about(spec.command, spec.module, spec.cwd)
