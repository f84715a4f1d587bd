"""Machines of one network on this one, by namespaces of the kernel: each has an address, a host name, processes, shared
memory, a boot id and a clock of its own. They can lose their power, their cable, or one direction of it.

It needs root, iproute2 and util-linux. However the process that made them ends, the kernel clears all of it away.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from trainer.rundir.machine.proc import stat

_KINDS = ("--net", "--mount", "--uts", "--pid", "--time", "--ipc")
_HELD = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("up", flush=True)
sys.stdin.read()
"""
"""The first process of a machine: it reaps, and ends when the one that holds its stdin does."""
_BOOT = """set -e
mount -t tmpfs -o size=4g tmpfs /dev/shm
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/resolv.conf" /etc/resolv.conf
mount --bind "$1/boot-id" /proc/sys/kernel/random/boot_id
hostname "$2"
exec "$3" -c "$4"
"""
_TOOLS = ("ip", "unshare", "nsenter", "mount", "hostname")


@functools.cache
def missing() -> str:
    """Why there can be no machines here; "" if there can. Where they are needed (.ci/run), whatever fails although root
    has the tools is an error of the tests, and nothing to skip them for."""
    if os.geteuid() != 0:
        return "namespaces of the kernel need root"
    if absent := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"not installed here: {', '.join(absent)} (iproute2, util-linux, hostname)"
    if os.environ.get("MACHINES") == "needed":
        return ""
    try:
        with network(1):
            return ""
    except (OSError, subprocess.SubprocessError, AssertionError) as error:
        return f"the kernel gives no namespaces here: {error}"


class Machine:
    """A node: its number, name and address, and what can happen to it."""

    def __init__(self, number: int, folder: Path, switch: int) -> None:
        """Without power yet. `switch` is a process in the network that joins all machines."""
        self.number, self.name = number, f"node{number}"
        self.address = f"10.79.{number + 1}.2"
        self.clock_ahead = 1000.0 * (number + 1)
        """How many seconds its CLOCK_MONOTONIC and CLOCK_BOOTTIME are ahead of those of the machine outside."""
        self._folder, self._switch, self._port = folder, switch, f"port{number}"
        self._holder: subprocess.Popen[str] | None = None
        self._pid = 0
        self._cut: set[tuple[str, ...]] = set()
        self._frozen: set[int] = set()
        self._small = False

    @property
    def pid(self) -> int:
        """Of its first process, seen from outside."""
        return self._pid

    @property
    def up(self) -> bool:
        return self._holder is not None

    def boot(self) -> None:
        """It is up, with empty memory, and its cable is in."""
        assert self._holder is None, f"{self.name} is up"
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "boot-id").write_text(f"{uuid.uuid4()}\n")
        shutil.copy(self._folder.parent / "hosts", self._folder / "hosts")
        # No name server: who asks for a name that is not in hosts is told so at once.
        (self._folder / "resolv.conf").touch()
        clocks = [f"--{clock}={self.clock_ahead:.0f}" for clock in ("monotonic", "boottime")]
        boot = [str(self._folder), self.name, sys.executable, _HELD]
        self._holder, self._pid = _held([*_KINDS, "--mount-proc", *clocks, "sh", "-c", _BOOT, "sh", *boot])
        self._wire()

    def _wire(self) -> None:
        network = self.address.rpartition(".")[0]
        _ip(
            self._switch,
            f"link add {self._port} type veth peer name eth0 netns {self._pid}",
            f"addr add {network}.1/24 dev {self._port}",
            f"link set {self._port} up",
        )
        _ip(
            self._pid,
            "link set lo up",
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {network}.1",
        )

    def popen(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """`command` on this machine. The process that is returned is outside, and ends with it."""
        return subprocess.Popen([*self.inside, *command], env=env, text=True, **options)

    @property
    def inside(self) -> list[str]:
        """What stands before a command that runs on this machine."""
        return ["nsenter", "--target", str(self._pid), *_KINDS, f"--wd={Path.cwd()}"]

    def pids(self) -> dict[int, int]:
        """Its processes but for the first and those that have ended: the pid outside by the pid inside."""
        if self._holder is None:
            return {}
        namespace, found = _namespace(self._pid), {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and int(folder.name) != self._pid and _namespace(int(folder.name)) == namespace:
                with contextlib.suppress(OSError):
                    told = dict(line.partition(":")[::2] for line in (folder / "status").read_text().splitlines())
                    if told["State"].split()[0] not in "ZX":
                        found[int(told["NSpid"].split()[-1])] = int(folder.name)
        return found

    def commands(self) -> dict[int, str]:
        """The command lines of its processes, by the pid inside."""
        found = {}
        for inside, outside in self.pids().items():
            with contextlib.suppress(OSError):
                found[inside] = (
                    Path(f"/proc/{outside}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
        return found

    def shared_memory(self) -> list[str]:
        """What is in its /dev/shm."""
        return sorted(path.name for path in Path(f"/proc/{self._pid}/root/dev/shm").iterdir())

    def send(self, pid: int, number: int) -> bool:
        """The process with that pid on this machine gets the signal; False if there is none."""
        outside = self.pids().get(pid)
        if outside is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(outside, number)
        return True

    def kill_all(self) -> None:
        """All its processes are dead, as a fault of their program would leave it. Its kernel lives: it closes what they
        had open, and keeps what is in /dev/shm."""
        while pids := self.pids():
            for pid in pids.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def freeze(self) -> None:
        """None of its processes runs on, until thaw(). Its kernel lives."""
        while new := set(self.pids().values()) - self._frozen:
            self._frozen |= new
            self._signal(new, signal.SIGSTOP)

    def thaw(self, *first: int) -> None:
        """They run on, those with these pids on this machine a moment before the others."""
        known = self.pids()
        self._signal({known[pid] for pid in first if pid in known}, signal.SIGCONT)
        time.sleep(0.2 if first else 0.0)
        # An nsenter stops when its child does.
        outside = {each.parent for pid in self._frozen if (each := stat(pid)) is not None} - self._frozen - {self._pid}
        self._signal(self._frozen | outside, signal.SIGCONT)
        self._frozen.clear()

    @staticmethod
    def _signal(pids: Iterable[int], number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def power_off(self) -> None:
        """Nobody hears of it again; its memory is lost."""
        if self._holder is None:
            return
        self._frozen.clear()
        # The cable first: the dying kernel closes connections.
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip(self._switch, f"link del {self._port}")
        _end(self._holder)
        self._holder = None

    def unplug(self) -> None:
        """Its cable is out: its interface is there, without a carrier."""
        _ip(self._switch, f"link set {self._port} down")

    def plug(self) -> None:
        _ip(self._switch, f"link set {self._port} up")

    def drop(self, what: Literal["sent", "received"]) -> None:
        """Everything that it has sent, or that is sent to it, is lost on the way, and nobody is told."""
        rule = ("iif", self._port) if what == "sent" else ("to", self.address)
        _ip(self._switch, f"rule add {' '.join(rule)} blackhole")
        self._cut.add(rule)

    def drop_to(self, other: Machine) -> None:
        """The same, for what it sends to that machine."""
        rule = ("iif", self._port, "to", other.address)
        _ip(self._switch, f"rule add {' '.join(rule)} blackhole")
        self._cut.add(rule)

    def bridge(self, name: str, address: str) -> None:
        """It has one more interface, which no other machine is at, as that of a container engine: with an address of
        172.16.0.0/12, until its power is off."""
        pair = f"link add {name} type veth peer name {name}-in"
        _ip(self._pid, pair, f"addr add {address}/16 dev {name}", f"link set {name}-in up", f"link set {name} up")

    def drop_large_to(self, other: Machine) -> None:
        """The same, for the packets that are larger than some interface on the way would take."""
        chain = "add table inet mtu; add chain inet mtu on {type filter hook forward priority 0;}"
        rule = f"add rule inet mtu on iifname {self._port} ip daddr {other.address} meta length > 1000 drop"
        _run(["nsenter", f"--net=/proc/{self._switch}/ns/net", "nft", "-f", "-"], f"{chain}; {rule}\n")
        self._small = True

    def heal(self) -> None:
        """Nothing is lost any more."""
        while self._cut:
            _ip(self._switch, f"rule del {' '.join(self._cut.pop())} blackhole")
        if self._small:
            _run(["nsenter", f"--net=/proc/{self._switch}/ns/net", "nft", "delete table inet mtu"])
            self._small = False


@contextlib.contextmanager
def network(count: int, alias: str = "") -> Iterator[list[Machine]]:
    """`count` machines that reach each other by name (and by `alias`, in which {} is the number) and address. All of
    them are up."""
    with tempfile.TemporaryDirectory(prefix="machines-") as name:
        folder = Path(name)
        holder, switch = _held(["--net", sys.executable, "-c", _HELD])
        machines = [Machine(number, folder / f"node{number}", switch) for number in range(count)]
        known = [f"{m.address} {m.name} {alias.format(m.number)}\n" for m in machines]
        (folder / "hosts").write_text("".join(known) + "127.0.0.1 localhost\n")
        try:
            forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
            _run(["nsenter", f"--net=/proc/{switch}/ns/net", "sh", "-c", forward])
            # What is sent to a machine without power, or to a bridge, is lost; the sender is not told.
            nowhere = (f"route add blackhole {net}" for net in ("10.79.0.0/16", "172.16.0.0/12"))
            _ip(switch, "link set lo up", *nowhere)
            for machine in machines:
                machine.boot()
            yield machines
        finally:
            for machine in machines:
                machine.power_off()
            _end(holder)


def _held(words: Sequence[str]) -> tuple[subprocess.Popen[str], int]:
    """A process in new namespaces, once it says that it is up, and its pid. It ends with the first one's stdin."""
    holder = subprocess.Popen(
        ["unshare", "--fork", "--kill-child", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stderr is not None
    if holder.stdout.readline() != "up\n":
        holder.kill()
        raise OSError(holder.stderr.read().strip() or "unshare failed")
    return holder, int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())


def _end(holder: subprocess.Popen[str]) -> None:
    """It, and with it all in its namespaces, is gone."""
    holder.kill()
    holder.wait()
    for stream in (holder.stdin, holder.stdout, holder.stderr):
        if stream is not None:
            stream.close()


def _namespace(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/ns/pid").stat().st_ino
    return None


def _ip(pid: int, *lines: str) -> None:
    """Commands of ip(8) in the network of that process."""
    _run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"], "\n".join(lines) + "\n")


def _run(command: Sequence[str], stdin: str = "") -> None:
    subprocess.run(command, input=stdin, text=True, check=True, capture_output=True)
