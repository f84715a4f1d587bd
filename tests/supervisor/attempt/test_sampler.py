"""Real processes that do not step: what their samples are taken for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.attempt.sampler import Sampler
from supervisor.core.hangs.motion import Kind, Motion, follow

SCRIPT = """
import concurrent.futures, re, socket, subprocess, sys, threading, time

def spin():
    while True:
        pass

def count():
    i = 0
    while True:
        i += 1

def evaluate():
    for item in range(10**9):
        score(item)

def score(item):
    return [str(n) for n in range(item % 7 * 1000)]

def regex():
    re.match("(a+)+$", "a" * 64 + "b")

def locked():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def beside_a_heartbeat():
    threading.Thread(target=lambda: [time.sleep(0.5) for _ in range(10**9)], daemon=True).start()
    locked()

def upload():
    ours, theirs = socket.socketpair()
    ours.settimeout(600)
    ours.recv(1)

def upload_in_a_thread():
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(upload).result()

def wait():
    subprocess.run(["sleep", "600"], capture_output=True)

def python_child():
    subprocess.run([sys.executable, __file__, "spin"])

def retry():
    while True:
        time.sleep(0.3)

globals()[sys.argv[1]]()
"""
EXPECTED = {
    "spin": Kind.PYTHON,
    "count": Kind.PYTHON,
    "evaluate": Kind.MOVING,
    "regex": Kind.BETWEEN,
    "beside_a_heartbeat": Kind.LOCKED,
    "upload": Kind.ANSWERED,
    "upload_in_a_thread": Kind.ANSWERED,
    "wait": Kind.ANSWERED,
    "python_child": Kind.PYTHON,
    "retry": Kind.ANSWERED,
}


@contextlib.contextmanager
def running(folder: Path, names: list[str]) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py"]
    started = [subprocess.Popen([*command, name], cwd=folder, start_new_session=True) for name in names]
    try:
        yield dict(enumerate(started))
    finally:
        for process in started:
            # With the child that it may have.
            subprocess.run(["kill", "-9", "--", f"-{process.pid}"], check=True)
            process.wait()


def test_what_processes_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.attempt.sampler.TIME_LIMIT", 60.0)
    names = list(EXPECTED)
    motions: dict[str, Motion] = {}
    with running(tmp_path, names) as processes:
        sampler = Sampler(tmp_path)
        pids = {rank: process.pid for rank, process in processes.items()}
        deadline = time.monotonic() + 200.0

        def known(name: str) -> bool:
            return name in motions and motions[name].all >= 5 and motions[name].kind is EXPECTED[name]

        while pids and time.monotonic() < deadline:
            for rank in [rank for rank in pids if known(names[rank])]:
                # What spins takes a core from the others.
                os.killpg(pids[rank], signal.SIGSTOP)
                del pids[rank]
            sampler.look(dict.fromkeys(pids, 1.0), pids, time.monotonic())
            for rank, sample in sampler.samples.items():
                before = motions.get(names[rank])
                if rank in pids and (before is None or before.last.at < sample.at):
                    motions[names[rank]] = follow(before, sample)
            time.sleep(0.02)
        sampler.close()

    assert {name: motion.kind for name, motion in motions.items()} == EXPECTED
    assert sampler.available
    frames = {name: motion.last.main.frames[0].function for name, motion in motions.items()}
    assert frames["spin"] == "spin" and frames["upload"] == "upload"


def test_where_there_are_no_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused again and again is not tried for ever; nor where py-spy is not installed."""
    with subprocess.Popen(["sleep", "600"]) as other:
        sampler = Sampler(tmp_path)
        deadline = time.monotonic() + 60.0
        while sampler.available and time.monotonic() < deadline:
            sampler.look({0: 1.0}, {0: other.pid}, time.monotonic())
            time.sleep(0.02)
        sampler.close()
        assert not sampler.available and not sampler.samples
        other.kill()

    # One look at many ranks that comes to nothing, as in a pause of the machine, does not mean that.
    sleeping = [subprocess.Popen(["sleep", "600"]) for _ in range(6)]
    pids = {rank: process.pid for rank, process in enumerate(sleeping)}
    sampler = Sampler(tmp_path)
    deadline = time.monotonic() + 60.0
    sampler.look(dict.fromkeys(pids, 1.0), pids, time.monotonic())
    while sampler._rounds and time.monotonic() < deadline:
        sampler.look({}, pids, time.monotonic())
        time.sleep(0.02)
    sampler.close()
    for process in sleeping:
        process.kill()
        process.wait()
    assert sampler.available and not sampler.samples and not sampler._rounds

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert not Sampler(tmp_path).available
