"""Sets the hooks of all trackers, as soon as a tracker is imported."""

from __future__ import annotations

import functools
import os

from ...rundir.environment import Supervised
from ...rundir.records.told import Trackers, told
from ..imports import after_import
from . import lightning, mlflow, tensorboard, wandb
from .going_on import GoingOn


def follow(place: Supervised) -> None:
    """From now on the program's trackers continue the files of earlier attempts."""
    known = told(os.environ)
    if known.trackers == Trackers.OFF:
        return
    numbers = known.numbers and int(os.environ.get("RANK", "0")) == 0
    going_on = GoingOn(place.run, known.trackers == Trackers.LATER, numbers)
    hooks = {**tensorboard.HOOKS, **lightning.HOOKS, **mlflow.HOOKS, **wandb.HOOKS}
    after_import({module: functools.partial(hook, going_on=going_on) for module, hook in hooks.items()})
