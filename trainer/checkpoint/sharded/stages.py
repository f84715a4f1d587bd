"""Pipeline stages: each rank has another part of the model, whole, and the optimizer of that part.

given as PerRank(part)                         it is each rank's own
the ranks' models have other tensors, by name  the model and its optimizers are each rank's own, without an argument

Of a DTensor in a stage (FSDP2) each rank has its part (see parts). What is each rank's own lies in its own file, and
comes back on the rank of the same number, on as many ranks. Stages whose tensors have the same names on all ranks
cannot be told from weights that have drifted apart: these are given as PerRank, or refused when the ranks compare their
states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import xxhash

from ...rundir.files.codec import encode
from ..errors import StateError
from ..group import Ranks
from ..state import several
from ..state.marks import PerRank
from ..state.per_rank import Parts

_FOLLOWING = {"model": ("optimizer", "parameters", "ddp", "made"), "optimizer": ("parameters",)}
"""What belongs to a part, and is each rank's own as it is."""


def unmarked(given: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """`given` without marks, and the names of the parts that were marked, or had a marked one in their mapping."""
    found, marked = dict(given), set[str]()
    for part, value in given.items():
        each = dict(value) if isinstance(value, Mapping) else {"": value}
        if not any(isinstance(one, PerRank) for one in each.values()):
            continue
        if any(isinstance(one, PerRank) and one.reshard is not None for one in each.values()):
            raise StateError(f"{part} is PerRank(..., reshard=...): a part cannot be resharded; leave reshard out")
        marked.add(part)
        bare = {name: one.value if isinstance(one, PerRank) else one for name, one in each.items()}
        found[part] = bare if isinstance(value, Mapping) else bare[""]
    return found, frozenset(marked - {"data"})  # data is each rank's own anyhow


def set_apart(parts: Parts, marked: frozenset[str]) -> Parts:
    """`parts`: those that were given as `marked`, and what belongs to them, are each rank's own from now on."""
    kinds = {*marked, *(kind for part in marked for kind in _FOLLOWING.get(part, ()))}
    parts.own |= {name for kind in kinds for name in several.of(kind, parts)}
    return parts


def learn(parts: Parts, ranks: Ranks, log: Callable[[str], object]) -> None:
    """The ranks' models are stages if they differ in the names of their tensors; `log` gets a sentence if nobody has
    marked them. All ranks call it."""
    state = parts["model"].state_dict() if ranks.world_size > 1 and "model" in parts else {}
    names = xxhash.xxh3_128_hexdigest(encode(sorted(map(str, state))))
    told = ranks.exchange([names, "model" in parts.own])
    if len({one for one, _ in told}) == 1 and not any(own for _, own in told):
        return
    said = "model" in parts.own
    set_apart(parts, frozenset({"model"}))
    if not said:
        log(
            "the ranks' models have other tensors, as pipeline stages have: each rank saves its own model and "
            "optimizer, and goes on with them on as many ranks"
        )
