"""The proof that two nodes share a folder, and run the same: a file that only the leader has made, and versions."""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir

_LARGEST = 1 << 24
_CUDA = re.compile(r"^cuda\b.*= *['\"](.+?)['\"]", re.MULTILINE)
_NCCL = ("nvidia-nccl-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu11")
_NONE = "none"


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
    """Whether that file of the leader is in the folder here, too. OSError if the disk does not tell."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return (run.path / Path(name).name).read_text() == nonce
    return False


def about(command: tuple[str, ...], module: bool, cwd: str) -> dict[str, str]:
    """What must be the same on all nodes: the versions, and the script. Without a command it is the run's."""
    found = {"Python": ".".join(map(str, sys.version_info[:3]))}
    found |= {name: version for name in ("torch", "supervise") if (version := _version(name))}
    found |= {"CUDA of torch": _cuda(), "NCCL": next(filter(None, map(_version, _NCCL)), _NONE)}
    if not command:
        return found
    found["the script"] = command[0]
    if not module:
        with contextlib.suppress(OSError):
            script = Path(cwd, command[0])
            if script.stat().st_size <= _LARGEST:
                found["the script's digest"] = hashlib.sha256(script.read_bytes()).hexdigest()[:12]
    return found


def _version(name: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return ""


def _cuda() -> str:
    """The version that torch was built for, by torch's own file: the version of the package does not always tell."""
    spec = find_spec("torch")
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if spec is not None and spec.origin and (said := _CUDA.search(_beside(spec.origin).read_text())):
            return said[1]
    return _NONE


def _beside(origin: str) -> Path:
    return Path(origin).with_name("version.py")


def about_spec(spec: Spec) -> dict[str, str]:
    return about(spec.command, spec.module, spec.cwd)
