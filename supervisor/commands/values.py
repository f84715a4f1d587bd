"""The base of the types of values, for every click that we work with: only newer ones know which type they give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    ParamType = click.ParamType
else:

    class ParamType(click.ParamType):
        """`ParamType[int]` is itself, as for any click at run time."""

        def __class_getitem__(cls, item: Any) -> type:
            return cls
