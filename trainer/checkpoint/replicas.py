"""Whether the replicated state is the same on every rank, bit for bit. A checkpoint holds it once, so it must be.

    every rank    digest each tensor where it lies, and the rest of the state  ->  exchange one digest of all of them
    not equal     exchange the digests one by one: the names of what differs, and which ranks agree

A large buffer of the model that differs becomes each rank's own. Anything else is an error: at the first comparison of
a run a StateError, since nobody has said that it is each rank's own; later ReplicasDiffer: the ranks drifted apart.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Set
from typing import Any

import torch
import xxhash

from ..rundir.files.codec import encode
from .errors import ReplicasDiffer, StateError
from .format.plan import total
from .group import Ranks
from .sharded.layouts import Layouts
from .state.packing import Packed
from .state.tensors import bytes_of

_SHARE = 1000
"""A comparison may take one part in this many of the time."""
_LEAST_S = 0.0002
_ASSUMED_BYTES_PER_S = 4e9
_NOT_COMPARED = frozenset({"guard", "made"})
"""Rank 0's by design: only its losses are looked at, and each rank's buffers may be made in another shape."""
_WRITTEN_FIRST = re.compile(r"optimizer(\.[^/]+)?/state/[^/]+/prev_loss")
"""LBFGS keeps the loss of this rank's batch there, and replaces it before it reads it: rank 0's is as good."""
_TOLD = 3
_CHUNK = 4 << 20
_ODD = -0x61C8864680B583EB


def folded(tensor: torch.Tensor) -> torch.Tensor:
    """A digest of the bytes of `tensor`, as an int64 on its device. Any change of one word changes it."""
    raw = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    padding = -raw.numel() % 8
    if padding or raw.storage_offset() % 8:
        raw = torch.cat([raw, raw.new_zeros(padding)])
    words, result = raw.view(torch.int64), torch.zeros((), dtype=torch.int64, device=raw.device)
    for start in range(0, words.numel(), _CHUNK):
        part = words[start : start + _CHUNK] * _ODD
        part ^= part >> 32
        part *= torch.arange(2 * start + 1, 2 * (start + part.numel()), 2, device=part.device)
        result += part.sum()
    return result


def digests(shared: Packed, left_out: Set[str] = frozenset()) -> dict[str, str]:
    """The type, shape and digest of each tensor that every rank should have alike, but for parts `left_out`."""
    names = [name for name in shared.replicated if name not in shared.led and name.split("/")[0] not in left_out]
    return _digested(shared, names)


def _digested(shared: Packed, names: list[str]) -> dict[str, str]:
    far = [name for name in names if not shared.tensors[name].is_cpu]
    numbers = torch.stack([folded(shared.tensors[name]) for name in far]).tolist() if far else []
    found = {name: f"{number & 0xFFFFFFFFFFFFFFFF:016x}" for name, number in zip(far, numbers, strict=True)}
    for name in names:
        if name not in found:
            _alive, view = bytes_of(shared.tensors[name])
            found[name] = xxhash.xxh3_64_hexdigest(view)
    return {name: f"{list(shared.specs[name].shape)} {shared.specs[name].dtype} {found[name]}" for name in names}


def _by_sharers(shared: Packed, sharers: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, str]]:
    """The digests of the sharded tensors of which other ranks hold the same box as this one; by those ranks."""
    names = [name for name in shared.placed if len(sharers.get(name, ())) > 1]
    found: dict[str, dict[str, str]] = {}
    for name, text in _digested(shared, names).items():
        found.setdefault("ranks " + ", ".join(map(str, sharers[name])), {})[name] = text
    return found


def _leaves(value: Any, path: str, found: dict[str, str]) -> dict[str, str]:
    """The text of each part of an encoded state, by path."""
    if isinstance(value, dict) and list(value) in (["$dict"], ["$tuple"]):
        (items,) = value.values()
        value = {str(key): inner for key, inner in items} if "$dict" in value else items
    if isinstance(value, dict) and value and not any(key.startswith("$") for key in value):
        for key, inner in value.items():
            _leaves(inner, f"{path}/{key}" if path else key, found)
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for number, inner in enumerate(value):
            _leaves(inner, f"{path}/{number}", found)
    else:
        text = encode(value)
        found[path] = text.decode() if len(text) < 60 else xxhash.xxh3_64_hexdigest(text)
    return found


def _groups(values: list[str | None], absent: bool) -> str:
    """Which ranks agree, for people. `absent`: whether a rank may have no value."""
    ranks: dict[str | None, list[int]] = {}
    for rank, value in enumerate(values):
        if value is not None or not absent:
            ranks.setdefault(value, []).append(rank)
    if None in ranks:
        there = [rank for value, group in ranks.items() if value is not None for rank in group]
        return f"only on {_listed(sorted(there))}"
    return "one value on " + ", another on ".join(_listed(group) for group in ranks.values())


def _listed(ranks: list[int]) -> str:
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks[:8])) + more


class Replicas:
    """The comparisons of one Checkpointer. With one rank there are none. Also a part of a checkpoint."""

    def __init__(self, ranks: Ranks, of_rank_0: frozenset[str] = frozenset(), trusted: bool = False) -> None:
        """`of_rank_0`: parts that are rank 0's by design. `trusted`: nothing is compared."""
        self._trusted = trusted
        self._ranks, self._left_out = ranks, of_rank_0 | _NOT_COMPARED
        self.equal_at: int | None = None
        """The newest step after which all ranks had the same state; None if that is not known."""
        self.differing: frozenset[str] = frozenset()
        """Buffers that were seen to differ. They are each rank's own from then on."""
        self._since, self._cost_s = time.monotonic(), _LEAST_S

    def state_dict(self) -> dict[str, Any]:
        return {"differing": sorted(self.differing)} if self.differing else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.differing = frozenset(map(str, state.get("differing", ())))

    @property
    def several(self) -> bool:
        return self._ranks.world_size > 1

    @property
    def compares(self) -> bool:
        return self.several and not self._trusted

    def restored(self, step: int, shared: Packed) -> None:
        """All ranks have read the same state of `step`. It is as large as `shared`."""
        self.equal_at, self._since = step, time.monotonic()
        self._cost_s = _LEAST_S + total(shared.specs) / _ASSUMED_BYTES_PER_S

    def due(self, now: float) -> bool:
        """Whether a comparison now would cost no more than its share of the time. `now`: time.monotonic()."""
        return self.compares and now - self._since >= _SHARE * self._cost_s

    def compare(
        self,
        shared: Packed,
        step: int,
        buffers: frozenset[str],
        layouts: Layouts | None = None,
        began: float | None = None,
    ) -> bool:
        """The ranks have the same state after `step` steps, but for `buffers` of the model that are large; returns
        whether such buffers differ and were not known to. Of sharded tensors, those ranks have the same that hold the
        same box, which they agree on. `began`: when the making of `shared` began (time.monotonic()), which is a part
        of the cost. StateError or ReplicasDiffer on every rank if anything else differs. All ranks call it at the same
        step."""
        if not self.compares or self.equal_at == step:
            return False
        began = time.monotonic() if began is None else began
        tree = {part: value for part, value in shared.tree.items() if part not in self._left_out}
        tensors, rest = digests(shared, self._left_out), encode(tree)
        mine = xxhash.xxh3_128_hexdigest(encode(tensors) + rest)
        layouts = layouts or Layouts()
        layouts.agree(shared, self._ranks)
        boxes = _by_sharers(shared, layouts.sharers)
        told = self._ranks.exchange([mine, {who: xxhash.xxh3_128_hexdigest(encode(b)) for who, b in boxes.items()}])
        new = frozenset[str]()
        if len({text for text, _ in told}) > 1:
            tables = self._ranks.exchange({**_leaves(tree, "", {}), **tensors})
            new = self._judge(tables, step, buffers)
            self.differing |= new
        if any(len({of.get(who) for _, of in told} - {None}) > 1 for who in {who for _, of in told for who in of}):
            # Only who holds a box has a line for it.
            self._judge(self._ranks.exchange({f"{n} of {w}": d for w, b in boxes.items() for n, d in b.items()}), step)
        self.equal_at = step
        self._since = time.monotonic()
        self._cost_s = max(_LEAST_S, self._since - began)
        return bool(new)

    def _judge(
        self, tables: list[Mapping[str, str]], step: int, buffers: frozenset[str] | None = None
    ) -> frozenset[str]:
        """`buffers`: those that may differ. None: the tables are of boxes, and each rank has only its own."""
        paths = dict.fromkeys(path for table in tables for path in table)
        absent = set() if buffers is not None else {None}
        differ = [
            path
            for path in paths
            if len({table.get(path) for table in tables} - absent) > 1 and not _WRITTEN_FIRST.fullmatch(path)
        ]
        buffers = buffers or frozenset()
        wrong = [path for path in differ if path not in buffers]
        if not wrong:
            return frozenset(differ)
        first = wrong[0]
        what = f"{first} is not the same on all ranks ({_groups([table.get(first) for table in tables], bool(absent))})"
        if len(wrong) > 1:
            more = ", ".join(wrong[1 : 1 + _TOLD]) + (", ..." if len(wrong) > 1 + _TOLD else "")
            what += f", and {len(wrong) - 1} more ({more})"
        if self.equal_at is None:
            raise StateError(
                f"{what}; a checkpoint holds it once for all ranks. What is each rank's own is marked in extra as "
                "PerRank(value); a slice made by hand is declared: shard_spec={name: Shard(dim, rank, of)}; stages of "
                "a pipeline are given as model=PerRank(model), an optimizer of which ranks take other steps (under "
                "join()) as optimizer=PerRank(optimizer); weights that should be the same need "
                "DistributedDataParallel, or the same seed on each rank"
            )
        raise ReplicasDiffer(
            f"{what}: the ranks have drifted apart after step {self.equal_at}, where all were the same, and at the "
            f"latest in step {step}",
            self.equal_at,
        )
