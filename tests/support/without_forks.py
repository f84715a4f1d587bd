"""A supervisor that can have no fork server, as a program: `program=WITHOUT_FORKS`."""

from __future__ import annotations

import sys

_CODE = """
import sys, _supervisor.group.maker as maker
def refuse(*_): raise OSError('no fork server here')
assert maker.ForkServer and maker._PAUSE
maker.ForkServer = refuse
maker._PAUSE = 0.01
from _supervisor.commands.cli import run
sys.exit(run(sys.argv[1:]))
"""
WITHOUT_FORKS = [sys.executable, "-c", _CODE]
