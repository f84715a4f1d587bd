"""Frameworks that are beside us only where somebody has installed them."""

from __future__ import annotations

import importlib.util

import pytest


def needs(*names: str) -> None:
    """The test goes on if all of these packages are installed."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (pip install -e '.[frameworks]')")


IMPORTED = {
    "transformers": ("transformers.trainer",),
    "lightning": ("lightning.pytorch",),
    "accelerate": ("accelerate",),
    "hydra": ("hydra",),
}
"""The modules that a script of a framework imports, and that cost: `Run.modules` of a test that is not about them."""
