"""Options of launch that are wrong together, or here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from supervisor.commands import nodes
from supervisor.commands.options import nearest
from supervisor.errors import Refusal
from supervisor.group import kept
from supervisor.process import loopback
from supervisor.run.briefing import ADAPTERS
from trainer.adapters.choice import NAMES, OFF
from trainer.rundir.records.faults import Fault, parse_fault

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}")


def sound(options: Mapping[str, Any], starts_ranks: bool) -> None:
    """Refusal for options that exclude each other, or that this machine cannot satisfy. `starts_ranks`: a script that
    is started once may start ranks itself."""
    name = options.get("name")
    if name is not None and not _NAME.fullmatch(name):
        raise Refusal(f"--name {name!r}: use letters, digits, '.', '_' and '-'")
    kept.check(options["keep_warm"], options["standby"])
    if options["spawns"] and options["nproc"] > 1:
        often = f"--nproc {options['nproc']} would start it as many times; leave out --nproc, or --spawns"
        raise Refusal(f"--spawns is for a script that starts its ranks itself, and {often}")
    world = options["nproc"] * nodes.most(options["nnodes"])
    for fault in map(parse_fault, options["inject"]):
        if (fault.rank or 0) >= world and (world > 1 or not starts_ranks):
            raise Refusal(f"--inject {no_rank(fault, world)}{'; see --nproc' if world == 1 else ''}")
    if options["local_addr"] is not None:
        loopback.has(options["local_addr"])
    adapter = options["adapter"]
    if options["log_restarts"] and adapter == OFF:
        raise Refusal("--log-restarts writes with the script's own trackers, and --adapter off leaves them alone")
    if adapter not in NAMES and adapter not in (others := entry_points(group=ADAPTERS).names):
        raise Refusal(f"--adapter {adapter}: there is no adapter of that name{nearest(adapter, [*NAMES, *others])}")


def no_rank(fault: Fault, world: int) -> str:
    """What is wrong with a fault of a rank that is not among `world`."""
    there = f"the ranks are 0 to {world - 1}" if world > 1 else "rank 0 is the only one"
    return f"{fault.text}: there is no rank {fault.rank}; {there}"
