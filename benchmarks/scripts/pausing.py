"""A healthy DDP script that pauses once for long, after its 40th step, or before its first one; nothing is wrong.

Arguments: the kind of pause, and its seconds. Rank 0 pauses, the other rank waits for it in a collective.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

kind, seconds = sys.argv[1], float(sys.argv[2])
_ANSWERS_LATE = """
import socket, sys, time
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as there:
    time.sleep(float(sys.argv[2]))
    there.sendall(b"x")
"""
_TRACES = """
import ctypes, os, sys, time
attach, detach = 16, 17
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(attach, int(sys.argv[1]), 0, 0) == 0, os.strerror(ctypes.get_errno())
time.sleep(float(sys.argv[2]))
os.waitpid(int(sys.argv[1]), 0x40000000)
libc.ptrace(detach, int(sys.argv[1]), 0, 0)
"""
_COMPILES = """
import sys, time
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    compile("x = 1\\n" * 2000, "generated", "exec")
    time.sleep(0.05)
"""


def score(number: int) -> float:
    """One sample of an evaluation. It computes a tenth of the time, so that many may be measured at once."""
    time.sleep(0.009)
    return sum(i * i for i in range(number % 7 * 1000)) ** 0.5


def evaluation() -> None:
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        number += 1
        score(number)


def upload() -> None:
    """To a server that answers when it has all of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        server = subprocess.Popen([sys.executable, "-c", _ANSWERS_LATE, port, str(seconds)])
        there, _ = listener.accept()
        there.settimeout(2 * seconds)
        assert there.recv(1) == b"x"
        there.close()
        server.wait()


def compilation() -> None:
    """By a compiler, a process of its own."""
    subprocess.run([sys.executable, "-c", _COMPILES, str(seconds)], check=True)


def slow_disk() -> None:
    """A pipe whose reader takes 64 KiB every two seconds: each write waits for it."""
    code = "import sys, time\nwhile sys.stdin.buffer.read(1 << 16): time.sleep(2)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as disk:
        assert disk.stdin is not None
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            disk.stdin.write(os.urandom(1 << 16))
        disk.stdin.close()


def first_batch() -> None:
    """The index of a huge data set is read, a bit of it at a time."""
    end = time.monotonic() + seconds
    with Path("index").open("wb+") as index:
        while time.monotonic() < end:
            index.write(os.urandom(1 << 12))
            index.flush()
            index.seek(0)
            index.read(1 << 12)
            time.sleep(0.2)


def debugger() -> None:
    """Somebody looks at this process, and it stands still."""
    with subprocess.Popen([sys.executable, "-c", _TRACES, str(os.getpid()), str(seconds)]):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.1)


def retry() -> None:
    """A storage that does not answer is asked again, later and later."""
    end, wait = time.monotonic() + seconds, 1.0
    while time.monotonic() < end:
        time.sleep(wait)
        wait = min(2 * wait, 60.0)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    pauses = dist.get_rank() == 0
    model = DistributedDataParallel(nn.Linear(8, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    pause = globals()[kind]
    for step in range(80):
        if step == (0 if kind == "first_batch" else 40):
            if pauses:
                pause()
            dist.barrier()
        model(torch.randn(4, 8)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        time.sleep(0.05)


main()
