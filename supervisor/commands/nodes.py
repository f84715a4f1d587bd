"""Several nodes on the command line of launch: their options, and which node this is."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from supervisor.commands import slurm
from supervisor.commands.options import Duration, setting
from supervisor.commands.values import ParamType
from supervisor.core.nodes.engines import endpoint_of, nodes_of
from supervisor.core.nodes.place import Asked, Place, place_of, spelled
from supervisor.errors import Refusal
from supervisor.process import addresses
from supervisor.run.runs import RUNS
from supervisor.run.spec import Spec

LEASES = (0.3, 60.0)
"""Seconds: below, a busy machine would lose its lease; above, a dead node is noticed too late to matter."""
_TORCHRUN = ("rdzv_endpoint", "rdzv_id", "node_rank", "master_addr", "master_port")


class NodeCount(ParamType[Any]):
    """Nodes that train: N, or MIN:MAX. The value is the text; it is empty if nobody gave one."""

    name = "n|min:max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return value and spelled(nodes_of(str(value), "--nnodes"))
        except ValueError as error:
            raise Refusal(str(error)) from None


class NodeRank(ParamType[Any]):
    """This node's number, or `auto` (None)."""

    name = "auto|i"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto":
            return None
        if not re.fullmatch(r"\d{1,6}", str(value)):
            self.fail(f"{value!r} is neither a number from 0 on nor 'auto'", param, ctx)
        return int(value)


class Endpoint(ParamType[Any]):
    """HOST[:PORT]. The value is the text."""

    name = "host[:port]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            endpoint_of(str(value), "--rdzv-endpoint")
        except ValueError as error:
            raise Refusal(str(error)) from None
        return str(value)


class Lease(Duration):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if seconds is not None and not LEASES[0] <= seconds <= LEASES[1]:
            self.fail("a lease is between 300ms and 1m", param, ctx)
        return seconds


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of several nodes, in the order of the help."""
    for made in reversed(
        (
            setting(
                "--nnodes",
                type=NodeCount(),
                metavar="N|MIN:MAX",
                show_default=False,
                help="Nodes that train; MIN:MAX: go on with fewer.  [default: as srun or NNODES say, else 1]",
            ),
            setting(
                "--node-rank",
                type=NodeRank(),
                metavar="auto|I",
                help="This node's number; 0 leads.  [default: auto: from the engine, else the leader gives it]",
            ),
            setting(
                "--rdzv-endpoint",
                type=Endpoint(),
                metavar="HOST[:PORT]",
                help="The node that leads.  [default: the engine's first]",
            ),
            setting("--node-wait", type=Duration(), help="Longest wait for nodes that are missing."),
            setting(
                "--local-dir",
                metavar="DIR",
                help="This node's own folder, for what must not be on a shared disk.  [default: in /dev/shm]",
            ),
            setting(
                "--lease",
                type=Lease({"auto": None}),
                metavar="auto|DUR",
                help="How long a node may be silent before it is lost.",
            ),
            click.option("--rdzv-id", hidden=True),
            click.option("--master-addr", hidden=True),
            click.option("--master-port", type=click.IntRange(1, 65535), hidden=True),
        )
    ):
        command = made(command)
    return command


@dataclass(frozen=True, slots=True)
class Located:
    """This node's place, in numbers that sockets take."""

    place: Place
    leads: bool
    leader: tuple[str, int]
    """Where the leader listens: an address, and the port."""
    address: str
    """This node's own address, at which its ranks meet those of other nodes."""


def placed(given: dict[str, Any], environ: Mapping[str, str] = os.environ) -> Place:
    """The place of this node, from the options and the environment. What is no value of a Spec is taken out of `given`.
    Refusal if they contradict."""
    rank, job, host, port = (given.pop(name) for name in ("node_rank", "rdzv_id", "master_addr", "master_port"))
    if given["rdzv_endpoint"]:
        host, port = endpoint_of(given["rdzv_endpoint"], "--rdzv-endpoint")
    count = nodes_of(given["nnodes"], "--nnodes") if given["nnodes"] else None
    try:
        place = place_of(Asked(count, rank, host, port, job or ""), environ)
    except ValueError as error:
        raise Refusal(str(error)) from None
    return place


def located(place: Place, local_addr: str | None, wait: float) -> Located:
    """The addresses of `place`, which is not alone. Names are asked for up to `wait` seconds. Refusal if nobody knows
    the leader's, or if this node has no address that others can reach."""
    if place.node == 0 or place.leader is None:
        return _leading(place, local_addr)
    found = addresses.waited_for(place.leader, wait, time.monotonic, time.sleep) or slurm.addresses_of(place.leader)
    if not found:
        raise Refusal(f"{place.leader} leads, and no address of it is known here; give --rdzv-endpoint ADDRESS:PORT")
    if place.node is None and any(map(addresses.is_ours, found)):
        return _leading(place, local_addr)
    own = local_addr or addresses.towards(found[0])
    if own is None:
        raise Refusal(f"there is no way from here to {place.leader} ({found[0]}), which leads; see: ip route")
    return Located(place, False, (found[0], place.port), own)


def _leading(place: Place, local_addr: str | None) -> Located:
    """The leader listens at the address by which the others know it. A name that stands for the loopback interface, as
    a machine's own does on Debian, is none that they could know."""
    own = local_addr
    if own is None and place.leader is not None:
        named = [number for number in addresses.numbers(place.leader) if addresses.is_ours(number)]
        own = next((n for n in named if not addresses.is_loopback(n) or place.leader in (n, "localhost")), None)
    own = own or addresses.outward()
    if own is None:
        raise Refusal("this node has no address that others can reach; give --local-addr")
    return Located(place, True, (own, place.port), own)


def folder(place: Place, stem: str) -> Path:
    """The folder of a run for which none was given: the same on all nodes, and at each start of the engine's job."""
    if not place.job:
        raise Refusal("several nodes share the run's folder: give each of them the same --run-dir")
    return RUNS / f"{stem}-{re.sub(r'[^A-Za-z0-9._-]', '-', place.job)}"


def ignored(given: Mapping[str, Any]) -> list[str]:
    """The options of torchrun that mean nothing on one node, as they were written."""
    return [f"--{name.replace('_', '-')}" for name in _TORCHRUN if given.get(name) is not None]


def most(nnodes: str) -> int:
    """The most nodes of a run, from `nnodes` in its Spec."""
    return nodes_of(nnodes, "nnodes")[1] if nnodes else 1


def refuse_alone(spec: Spec, located: Located | None) -> None:
    """Refusal if the run is one over several nodes, and only this one was asked."""
    if located is None and spec.several:
        words: Sequence[str] = spec.command[:1]
        raise Refusal(
            f"{spec.run} trains {' '.join(words)} on several nodes: give its launch command again on each of them"
        )
