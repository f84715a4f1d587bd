"""The adapters in a rank: their hooks around calls of frameworks, and the record of the program's options."""

from __future__ import annotations

import functools
import importlib
import operator
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

from ...adapters.choice import BUILT_IN
from ...adapters.protocol import Adapter, Hook, Orders
from ...rundir.environment import Supervised
from ...rundir.records.told import Told, told
from ..imports import after_import
from ..progress import progress
from .options import Recorder
from .steps import unseen


def follow(
    place: Supervised, rank: int | None = None, warn: Callable[[str], object] = lambda text: None
) -> Recorder | None:
    """From now on, frameworks are handed the checkpoints from which this attempt may resume. Rank 0 records the options
    of its program if they are not known yet. Then the recorder is returned: call its first_step(). In each attempt it
    records the facts and uses that hooks tell. `warn` is called if an adapter of a third party is broken."""
    orders_of = told(os.environ)
    recorder = None
    if rank == 0:
        # A stage may begin for the first time in any attempt.
        recorder = Recorder(place.run.options, int(os.environ.get("WORLD_SIZE", "1")), more=not orders_of.record)
    if recorder is not None and orders_of.record:
        recorder.watch()
    hooks: dict[str, list[Hook]] = {}
    for adapter in (*BUILT_IN, *_others(orders_of.hooks, warn)):
        orders = _orders(orders_of, adapter.name, recorder, warn if rank == 0 else lambda text: None)
        for module, hook in getattr(adapter, "hooks", {}).items():
            hooks.setdefault(module, []).append(functools.partial(hook, orders=orders))
    after_import({module: functools.partial(_all, these) for module, these in hooks.items()})
    return recorder if orders_of.record else None


def _others(places: tuple[str, ...], warn: Callable[[str], object]) -> Iterator[Adapter]:
    for place in places:
        module, _, name = place.partition(":")
        try:
            yield operator.attrgetter(name)(importlib.import_module(module))
        except Exception as error:  # an adapter may be anybody's
            warn(f"the adapter {place} cannot be loaded in a rank: {type(error).__name__}: {error}")


def _all(hooks: list[Hook], module: object) -> None:
    for hook in hooks:
        hook(module)  # type: ignore[arg-type,call-arg]


def _orders(body: Told, name: str, recorder: Recorder | None, warn: Callable[[str], object]) -> Orders:
    offers = body.offers if body.adapter == name else ()
    # A process may become a rank later.
    orders = Orders(
        offers,
        body.facts,
        body.trainings,
        total=lambda steps: progress().told(total=steps),
        loss=lambda loss: progress().told(loss=loss),
        doing=lambda doing: progress().now(doing),
        begins=_begins,
        warn=warn,
        unseen=unseen,
    )
    return orders if recorder is None else replace(orders, uses=recorder.uses, fact=recorder.fact)


def _begins(number: int) -> None:
    progress().training = number
