"""A run over several nodes, from the command line: this node leads it, or follows.

A run on one node does not import this: it takes 25 ms of a launch.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from supervisor.commands import background, nodes, slurm, target
from supervisor.commands.nodes import Located
from supervisor.core.model import Cause, Do
from supervisor.core.nodes.engines import ENGINES
from supervisor.core.nodes.lease import LONGEST
from supervisor.core.nodes.membership import Membership
from supervisor.core.nodes.place import Place
from supervisor.errors import InternalError, Refusal
from supervisor.loop.follower import Follower, Node
from supervisor.nodes.hub import Hub
from supervisor.nodes.interfaces import elsewhere
from supervisor.nodes.lead.leader import Here, Leader
from supervisor.nodes.line import Line
from supervisor.nodes.own import Own
from supervisor.nodes.roads import Roads
from supervisor.nodes.talk.probe import about
from supervisor.nodes.token import token_of
from supervisor.process.descriptors import enough
from supervisor.process.place import here
from supervisor.process.proctree import remember_inherited
from supervisor.reading.plain import plain
from supervisor.run.events import EventLog
from supervisor.run.folder.stops import Stops
from supervisor.run.previous import Previous
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir

_LOOK_EVERY = 0.1


def place(given: dict[str, Any], where: Place, detached: bool) -> Located:
    """The place of this node, which is not alone, in addresses. `given` are the options of launch; those that the
    engine decides are in them from here on."""
    if detached and where.source in ENGINES:
        raise Refusal(
            f"{where.source} ends what it has started when this command is over: leave out --detach, and see the run "
            "with supervise attach"
        )
    if given["spawns"]:
        raise Refusal("--spawns is for a script that starts its ranks itself, on one node")
    if given["actions"].get(Cause.GPU_LOST) == Do.SHRINK:
        raise Refusal("gpu_lost=shrink: on several nodes, all have the same number of ranks; use --nnodes MIN:MAX")
    given["nnodes"] = str(where.most) if where.least == where.most else f"{where.least}:{where.most}"
    located = nodes.located(where, given["local_addr"], given["node_wait"])
    given["local_addr"] = located.address
    if given["run_dir"] is None:
        given["run_dir"] = nodes.folder(where, given["name"] or target.stem(given["command_line"]))
    return located


def leader_of(
    run: RunDir, spec: Spec, previous: Previous, log: EventLog, located: Located
) -> Callable[[Stops], Leader]:
    """Makes the leader, which listens from then on. Refusal if it cannot listen."""
    enough(spec.nproc * nodes.most(spec.nnodes))
    lease = spec.lease or LONGEST
    members = previous.nodes if previous.unfinished else {}
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    known = Membership.begin(0, here()["host"], previous.last_attempt, members, now, lease)

    (address, port), token = located.leader, token_of(run, os.environ, create=True)
    own = Own(spec.local_dir, token, address)
    try:
        hub = Hub((address, port), token, spec.lease, own.path)
    except OSError as error:
        own.close()
        raise Refusal(
            f"this node leads and cannot listen at {address}:{port} ({error.strerror}); "
            "give all nodes another --rdzv-endpoint HOST:PORT"
        ) from None
    roads = _roads(located, token)
    return lambda stops: Leader(hub, run, spec, log, stops, known, Here(located.address, own, roads))


def follow(located: Located, given: Mapping[str, Any], quiet: bool, say: Callable[[str], None] | None = None) -> int:
    """This node follows to the end of the run. Returns the exit code of `launch`. `say` tells people; its first
    words are that a leader has admitted this node."""
    remember_inherited()
    run, wait = RunDir(Path(given["run_dir"]).resolve()), float(given["node_wait"])
    token = wait_for_token(run, wait)
    arguments, module = list(given["command_line"]), bool(given["module"])
    script: dict[str, Any] = target.command(arguments, module)
    same = about(script["command"] if arguments else (), script["module"], script["cwd"])
    enough(given["nproc"])
    own = Own(given["local_dir"], token, located.address)
    node = Node(located.place.node, located.address, given["nproc"], same, own, wait, _roads(located, token))
    line = Line(located.leader, located.address, token, own.path)
    say = say or ((lambda text: None) if quiet else _say)
    try:
        follower = Follower(line, run, node, dict(os.environ), say)
        with background.never_paused(say):
            code = follower.follow()
        if follower.leaderless and (said := slurm.requeue(os.environ)):
            say(said)
        return code
    except Refusal:
        raise
    except Exception as error:
        # The warden ends what runs here, and the leader sees that. The run goes on without this node, or waits for it.
        log = log_of(run, located)
        with contextlib.suppress(OSError), log.open("a") as file:
            file.write("".join(traceback.format_exception(error)))
        why = f"internal error ({type(error).__name__}: {error}), please report it with {log}"
        raise InternalError(f"{why}; the run may go on without this node: start it here again") from error


def log_of(run: RunDir, located: Located) -> Path:
    """Where the supervisor of a node that follows writes what nobody is there to read."""
    return run.path / f"supervisor.{located.address}.log"


def _roads(located: Located, token: bytes) -> Roads:
    """Refusal if this node cannot be called at its address."""
    try:
        return Roads(located.address, token, others=elsewhere(os.environ, located.address))
    except OSError as error:
        where = f"{located.address} ({error.strerror or error})"
        raise Refusal(f"no port can be opened at {where}; give an address of this node: --local-addr ADDR") from None


def _say(text: str) -> None:
    print(plain(f"supervise: {text}"), file=sys.stderr)


def wait_for_token(run: RunDir, wait: float) -> bytes:
    """The token of the run, once the leader has made it. Refusal after `wait` seconds."""
    until = time.monotonic() + wait
    while True:
        try:
            return token_of(run, os.environ, create=False)
        except FileNotFoundError:
            if time.monotonic() >= until:
                raise Refusal(
                    f"no leader has begun a run in {run.path} within {wait:.0f} s: all nodes need the same --run-dir, "
                    "on a disk that they share"
                ) from None
        time.sleep(_LOOK_EVERY)
