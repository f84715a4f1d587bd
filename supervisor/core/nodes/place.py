"""Which node of how many this is, and where the leader is found: from what was asked and what the engine says."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.core.nodes.engines import Engine, Environ, engine_of

PORT = 29400
"""Where the leader listens if nothing says so, as torchrun's rendezvous does."""
_PORTS = range(20000, 30000)
"""Below those that the kernel gives to clients (ip_local_port_range)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person says of the nodes, by an option, SUPERVISE_* or supervise.toml. None: nothing."""

    nnodes: tuple[int, int] | None = None
    """The least and the most nodes."""
    node: int | None = None
    host: str | None = None
    port: int | None = None
    job: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """This node's place among those of a run."""

    least: int = 1
    most: int = 1
    """As many nodes train: `most`, or if some are lost no fewer than `least`. Others that come are spares."""
    node: int | None = 0
    """0 leads. None: whoever has the leader's address leads, and gives the others their numbers."""
    leader: str | None = None
    """A name or address of the node that leads; None if it is this one."""
    port: int = PORT
    """Where the leader listens. Two jobs that share a node have different ones."""
    source: str = ""
    """Who said that there are several nodes, for people; "" if nobody did."""
    job: str = ""
    incarnation: int = 0
    """How often the engine has started this job before."""

    @property
    def alone(self) -> bool:
        return self.most == 1


def place_of(asked: Asked, environ: Environ) -> Place:
    """What was asked is stronger than what the engine says, each part for itself.

    ValueError, in a sentence, if they contradict each other or do not say enough.
    """
    engine = Engine("") if asked.nnodes == (1, 1) else _engine(asked, environ)
    nnodes = asked.nnodes or engine.nnodes or ((1, 1) if not engine.name else None)
    if nnodes is None:
        raise ValueError(f"{engine.name} starts this command, and does not say on how many nodes: give --nnodes")
    if nnodes[1] == 1:
        # The endpoint of torchrun's own command for one machine means nothing here.
        if asked.node:
            raise ValueError(f"--node-rank {asked.node}, and there is one node: give --nnodes, too")
        return Place()
    if engine.nnodes is not None and nnodes[0] > engine.nnodes[1]:
        raise ValueError(f"--nnodes {spelled(nnodes)}, and {engine.name} starts this command on {engine.nnodes[1]}")
    node = engine.node if asked.node is None else asked.node
    host = asked.host or engine.host
    if host is None and node != 0:
        which = "nothing says which one leads: give --rdzv-endpoint HOST[:PORT]"
        raise ValueError(f"{engine.name or '--nnodes'} asks for several nodes ({spelled(nnodes)}), and {which}")
    job = asked.job or engine.job
    port = asked.port or (engine.port if asked.host is None else None) or (port_of(job) if job else PORT)
    return Place(*nnodes, node, host, port, engine.name or "--nnodes", job, engine.incarnation)


def _engine(asked: Asked, environ: Environ) -> Engine:
    """The engine; one that says nothing if there is none, or if the person has said all there is to say."""
    try:
        return engine_of(environ) or Engine("")
    except ValueError:
        if asked.nnodes is None or (asked.host is None and asked.node != 0):
            raise
        return Engine("")


def spelled(nnodes: tuple[int, int]) -> str:
    """N, or MIN:MAX."""
    least, most = nnodes
    return str(most) if least == most else f"{least}:{most}"


def port_of(job: str) -> int:
    """The same on every node and at every start of the job (FNV-1a: Python's own hash differs by process)."""
    number = 0x811C9DC5
    for byte in job.encode():
        number = (number ^ byte) * 0x01000193 % (1 << 32)
    return _PORTS[number % len(_PORTS)]
