"""An earlier commit of this project, installed in a temporary folder, with the same torch and Python."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import ROOT, say


@contextmanager
def installed(commit: str) -> Iterator[Path]:
    """The program `supervise` of that commit. Packages that it needs and this environment lacks are installed, too.

    RuntimeError if there is no such commit here, or it cannot be installed.
    """
    with tempfile.TemporaryDirectory(prefix="bench-commit-") as name:
        folder = Path(name)
        tree, venv = folder / "tree", folder / "venv"
        tree.mkdir()
        archive = _done(["git", "-C", str(ROOT), "archive", commit])
        _done(["tar", "-x", "-C", str(tree)], archive)
        say(f"installing {commit}")
        _done([sys.executable, "-m", "venv", str(venv)])
        site = next(venv.glob("lib/python*/site-packages"))
        # As a path alone: the .pth files there, which lead to this checkout, are not read.
        (site / "shared.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
        _done([str(venv / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", str(tree)])
        yield venv / "bin" / "supervise"


def _done(command: list[str], given: bytes = b"") -> bytes:
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()[-2000:]}")
    return done.stdout
