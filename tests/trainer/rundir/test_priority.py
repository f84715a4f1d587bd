"""The priority of a process is lowered for now only if it can be given back, and then all of it is given back."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.supervised import ROOT
from trainer.rundir.machine.priority import LOWEST

_HEAD = f"""
import json, os, subprocess, sys, threading
sys.path.insert(0, {str(ROOT)!r})
from trainer.rundir.machine.priority import lower_for_now, raise_again

def nice(process=0):
    return os.getpriority(os.PRIO_PROCESS, process)

def session():
    try:
        return int(open("/proc/self/autogroup").read().split()[-1])
    except (OSError, IndexError):
        return None
"""
_BACK = (
    _HEAD
    + """
before, weight = nice(), session()
if not lower_for_now():
    sys.exit("may not")
held, end = threading.Event(), threading.Event()
inner = threading.Thread(target=lambda: (held.set(), end.wait()))
inner.start()
held.wait()
child = subprocess.Popen(["sleep", "60"])
low = [nice(), nice(inner.native_id), nice(child.pid)], session()
changed = [raise_again(pid, before) for pid in (os.getpid(), child.pid, os.getpid())]
back = [each - before for each in (nice(), nice(inner.native_id), nice(child.pid))], session()
child.kill()
end.set()
print(json.dumps([low, changed, back, weight]))
"""
)
_MAY_NOT = (
    _HEAD
    + """
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
before = nice(), session()
print(json.dumps([lower_for_now(), (nice(), session()) == before, threading.active_count()]))
"""
)


def said(code: str, alone: bool) -> Any:
    done = subprocess.run([sys.executable, "-c", code], start_new_session=alone, capture_output=True, text=True)
    if done.stderr.strip() == "may not":
        pytest.skip("this user may not give a lower niceness")
    assert not done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("alone", [True, False])
def test_all_of_it_is_given_back(alone: bool) -> None:
    """A thread and a process that were started meanwhile, too; and the session, if it is its own."""
    (low, low_session), changed, (back, back_session), session = said(_BACK, alone)
    assert (low, changed, back) == ([LOWEST] * 3, [True, True, False], [0] * 3)
    if alone and session is not None:
        assert (low_session, back_session) == (LOWEST, 0)
    else:
        assert low_session == back_session == session


def test_without_the_right_nothing_changes() -> None:
    assert said(_MAY_NOT, alone=True) == [False, True, 1]
