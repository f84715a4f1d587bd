"""Samples whose random part is the same after a restore, though a worker of a DataLoader draws it."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, get_worker_info

from ...errors import StateError
from .. import rng


class Seeded(Dataset[Any]):
    """`dataset`, a map of indices to samples, for a loader with workers. What a sample draws there, from the generators
    of torch, numpy and Python's random, depends on its index and on the epoch's seed alone: the seed that the loader
    draws for its workers at each epoch's begin, which its state keeps. Without workers nothing is changed: there the
    process's own generators are part of the state.

    Not for workers that stay (persistent_workers): they keep the first epoch's seed. An index that comes twice in an
    epoch draws the same twice.
    """

    def __init__(self, dataset: Any) -> None:
        if not hasattr(dataset, "__getitem__"):
            raise StateError(
                f"Seeded is for a dataset with an index for each sample, not for a {type(dataset).__name__}"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if (worker := get_worker_info()) is not None:
            rng.seed(worker.seed - worker.id, index)
        return self.dataset[index]


def check(loader: Any) -> None:
    """StateError if samples of `loader` would be drawn from one seed in all epochs."""
    if isinstance(getattr(loader, "dataset", None), Seeded) and getattr(loader, "persistent_workers", False):
        raise StateError(
            "data has a Seeded dataset and persistent_workers=True, whose workers keep the seed of the first epoch: "
            "leave persistent_workers out"
        )
