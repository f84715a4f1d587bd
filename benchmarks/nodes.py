"""What the links of a run over several nodes cost the leader.

So many followers, over real sockets of this machine: each sends five beats a second, with the steps of 8 ranks, and
gets a lease for each. The leader looks at all of them five times a second, and knows who is lost. Its numbers are its
own (getrusage), with nothing else in its process. The followers are in a second process.

python benchmarks/nodes.py [FOLLOWERS…]     (4 32 128)
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import time

from supervisor.core.nodes.lease import BEAT
from supervisor.core.nodes.membership import Membership
from supervisor.nodes.hub import Asked, Hub
from supervisor.nodes.lease import boottime
from supervisor.nodes.wire import beats
from supervisor.nodes.wire.beats import Beat, Grant
from supervisor.nodes.wire.dialing import connect
from supervisor.nodes.wire.link import Link

SECONDS = 15.0
WARM_UP = 2.0
LEASE = 1.0
HOST, TOKEN = "127.0.0.1", b"a token for a benchmark"
BODY = json.dumps({"steps": {str(rank): 123456 for rank in range(8)}, "snapshot": 123456}).encode()


def lead(followers: int) -> dict[str, float]:
    """The leader's numbers, with so many followers."""
    hub = Hub((HOST, 0), TOKEN, LEASE)
    others = subprocess.Popen(
        [sys.executable, __file__, "--follow", str(hub.port), str(followers)], stdout=subprocess.PIPE
    )
    node, known = 0, Membership.begin(0, "leader", -1, {}, boottime(), LEASE)
    while node < followers:
        select.select([hub.fd], [], [], 1.0)
        for event in hub.take():
            if isinstance(event, Asked):
                node += 1
                known = known.joined(node, event.host, event.link, None, boottime(), hub.admit(event.link, node, b""))
    known = known.launched(0, tuple(range(followers + 1)), dict.fromkeys(range(followers + 1), 8))
    time.sleep(WARM_UP)
    began, used = time.monotonic(), _used()
    worst = 0.0
    while time.monotonic() < began + SECONDS:
        time.sleep(BEAT)
        heard, now = hub.heard(), boottime()
        for number, each in heard.items():
            known = known.heard(number, each.link, each.at, each.leased_until)
        known = known.looked(now)
        assert not known.lost and not known.nodes(followers, followers + 1, 30.0, now).chosen()[1:]
        worst = max(worst, *(now - each.at for each in heard.values()))
    seconds, cpu = time.monotonic() - began, _used() - used
    assert not hub.take(), "a link was lost"
    others.kill()
    assert others.stdout is not None
    others.stdout.close()
    others.wait()
    hub.close()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = followers / BEAT
    return {
        "followers": followers,
        "beats_per_s": rate,
        "percent_of_a_core": round(100 * cpu / seconds, 2),
        "us_per_beat": round(1e6 * cpu / seconds / rate, 1),
        "oldest_beat_s": round(worst, 2),
        "memory_mb": round(memory, 1),
    }


def _used() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def follow(port: int, followers: int) -> None:
    """So many followers, each of which beats at a time of its own."""
    links = [_linked(port) for _ in range(followers)]
    poll = select.poll()
    for link in links:
        poll.register(link.fds()[0], select.POLLIN)
    of = {link.fds()[0]: link for link in links}
    due = [(time.monotonic() + n * BEAT / followers, link) for n, link in enumerate(links)]
    while True:
        at, link = due.pop(0)
        while (left := at - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                for body in of[fd].tick():
                    assert body[:1] != beats.LEASE or Grant.of(body).seconds == LEASE
        now = boottime()
        link.send(Beat(now, time.monotonic(), 0.0, 0.0, BEAT, BODY).packed())
        due.append((at + BEAT, link))


def _linked(port: int) -> Link:
    """A link that is admitted."""
    dialing = connect(HOST, port, TOKEN, time.monotonic())
    while (link := dialing.tick(time.monotonic())) is None:
        time.sleep(0.001)
    link.send(beats.HELLO + b"hello")
    while not any(body[:1] == beats.WELCOME for body in link.tick()):
        time.sleep(0.001)
    return link


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--follow"]:
        follow(int(arguments[1]), int(arguments[2]))
    for followers in map(int, arguments or ["4", "32", "128"]):
        if os.fork() == 0:
            print(json.dumps(lead(followers)), flush=True)
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
