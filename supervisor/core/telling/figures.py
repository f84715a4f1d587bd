"""The numbers of a run as people read them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def share(step: int, total: int) -> str:
    """`4 %`; never 100 % before the end."""
    return f"{min(100 * step // total, 99 if step < total else 100)} %"


def per_step(milliseconds: float) -> str:
    """`12 ms/step`, `0.8 ms/step`, `1.5 s/step`."""
    if milliseconds >= 1000.0:
        return f"{milliseconds / 1000:.3g} s/step"
    return f"{milliseconds:.0f} ms/step" if milliseconds >= 10.0 else f"{milliseconds:.1f} ms/step"


def left(seconds: float) -> str:
    """`0:05`, `2:10`, `1 h 05`, `3 d 4 h`: a time that goes down, without its unit jumping about."""
    whole = max(0, math.ceil(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes:02d}" if hours else f"{minutes}:{rest:02d}"


def loss(value: float) -> str:
    """`2.3145`, `1.2e-05`, `nan`."""
    return f"{value:.4f}" if not math.isfinite(value) or 1e-3 <= abs(value) < 1e4 or value == 0.0 else f"{value:.3g}"


def rate(lr: float) -> str:
    return f"{lr:.3g}"


def standbys(paid: Mapping[str, Any]) -> str:
    """What the making of a standby costs the training, as ledger.standbys() tells it; empty if none was measured."""
    if not paid["measured"]:
        return ""
    of = f", median of {paid['measured']}" if paid["measured"] > 1 else ""
    made = f"a standby{of}: while it was made, for {paid['made_s']:.1f} s, steps took"
    if paid["share"] <= 0.0:
        # What is below the noise of the steps may come out below 0.
        return f"nothing measurable for {made} no longer"
    return f"{paid['cost_s']:.2f} s {made} {100 * paid['share']:.1f} % longer"
