"""The network between the nodes of a run, for the node that leads: each calls all others, and who cannot is named."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import msgspec

from supervisor.core.nodes.nodes import Nodes
from supervisor.core.nodes.roads import Roads as Known
from supervisor.nodes.roads import Places, Reached, Roads, Tried
from supervisor.nodes.talk import messages as says

CLOCKS = 2.0
"""Seconds that the time of day of two nodes may differ."""

Send = Callable[[int, msgspec.Struct], None]
Tell = Callable[..., None]
"""Tells an event about a node: its number, the event's name, its level, and fields."""


class Network:
    """Nothing here blocks; tick() does the work."""

    def __init__(self, roads: Roads, local: int, send: Send, tell: Tell) -> None:
        """`roads` are those of this node, whose number is `local`."""
        self._roads, self._local, self._send, self._tell = roads, local, send, tell
        self._places: dict[int, Places] = {}
        self._known = Known()
        self._joined(local, roads.reached)
        self._doubted = -1
        """The newest attempt that made all call again."""

    @property
    def fd(self) -> int:
        """Readable when there is something for tick()."""
        return self._roads.fd

    def tick(self) -> None:
        """What this node's own calls have found is known."""
        for tried in self._roads.take():
            self._take(self._local, tried.node, tried.why, tried.setting)
            if not tried.why and not tried.setting and abs(tried.ahead) >= CLOCKS:
                self._clock(tried)

    def joined(self, node: int, reached: Reached) -> None:
        """The node is linked, and can be called as it has said."""
        self._joined(node, reached)
        self._call()

    def left(self, node: int) -> None:
        """The node is away."""
        if self._places.pop(node, None) is not None:
            self._known = self._known.left(node)
            self._call()

    def called(self, caller: int, message: says.Called) -> None:
        """That node has called another one."""
        self._take(caller, message.node, message.why, message.setting)

    def doubt(self, attempt: int) -> None:
        """The attempt stands still: so all call again, once. Whoever is cut off is named."""
        if attempt > self._doubted:
            self._doubted = attempt
            self._call(anew=True)

    def seen(self, nodes: Nodes) -> Nodes:
        """`nodes`, with what is known of the roads between them."""
        return replace(nodes, cut=self._known.cut, untried=self._known.untried(time.monotonic()))

    def close(self) -> None:
        self._roads.close()

    def _call(self, anew: bool = False) -> None:
        for caller in self._places:
            others = {node: place for node, place in self._places.items() if node != caller}
            if caller == self._local:
                self._roads.call(others, anew)
            else:
                self._send(caller, says.CallNodes(others, anew))

    def _joined(self, node: int, reached: Reached) -> None:
        self._places[node] = reached.places
        self._known = self._known.joined(node, time.monotonic(), reached.certain)
        for setting, why in reached.closed.items():
            text = f"the ranks of node {node} cannot be called as {setting} says: {why} (see: ip addr)"
            self._tell(node, "warning", "warning", text=text)

    def _take(self, caller: int, node: int, why: str, setting: str) -> None:
        road, fields = (caller, node), {"setting": setting} if setting else {}
        if why and setting and node in self._places:
            why += self._mended(node, setting)
        was_cut = (road, setting) in self._known.failed
        self._known = self._known.told(road, why, setting)
        is_cut = (road, setting) in self._known.failed
        if is_cut:
            text = f"node {caller} cannot reach node {node} {why}"
            self._tell(caller, "nodes_apart", "warning", to=node, why=why, text=text, **fields)
        elif was_cut:
            text = f"node {caller} reaches node {node} now" + (f", where {setting} says" if setting else "")
            self._tell(caller, "nodes_apart", to=node, over=True, text=text, **fields)

    def _mended(self, node: int, setting: str) -> str:
        """What has chosen an address that is not the node's own, and what to do."""
        name, own = setting.partition("=")[0], self._places[node][""][0]
        return (
            f" ({setting} has chosen that address for the ranks of node {node}, whose own is {own}: set {name} there "
            "to an interface whose first address the others reach)"
        )

    def _clock(self, tried: Tried) -> None:
        way = "ahead of" if tried.ahead > 0 else "behind"
        text = f"the clock of node {tried.node} is {abs(tried.ahead):.0f} s {way} that of node {self._local}"
        self._tell(
            tried.node, "warning", "warning", text=f"{text}: times in their logs do not compare; let NTP set both"
        )
