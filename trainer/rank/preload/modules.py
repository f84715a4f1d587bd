"""What a script imports, learned once so that the fork server can import it before the next attempt needs it."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from ...rundir.files.codec import encode
from ...rundir.files.durable import replace_file
from ...rundir.records.learned import remembered

ALWAYS = (
    "torch",
    "torch.distributed.run",
    "torch.distributed.launcher.api",
    "torch.nn.parallel",
    # The first optimizer and DDP's constructor import it: a second, otherwise spent after the kill.
    "torch._dynamo",
)
_MOST = 5000


_OURS = str(Path(__file__).parents[2]) + os.sep


def third_party() -> list[str]:
    """The names of the loaded modules that were installed, this package's among them (not the standard library's, not the
    script's own, nor other names of what is there already: in the next attempt they may be the user's), in the order in
    which they were loaded."""
    names = []
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        origin = getattr(spec, "origin", None) or ""
        installed = origin.startswith(_OURS) or "-packages" + os.sep in origin
        if installed and getattr(spec, "name", None) == name and name.partition(".")[0] not in sys.stdlib_module_names:
            names.append(name)
    return names[:_MOST]


class Barred(BaseException):
    """A module was imported that is not to be. No `except Exception` on the way takes it for a missing one."""


def remember(path: Path) -> None:
    """`path` lists what third_party() finds now; a full disk only costs the list."""
    names = third_party()
    if names != remembered(path):
        with contextlib.suppress(OSError):
            replace_file(path, encode(names))


def load(names: Iterable[str], between: Callable[[], None] = lambda: None) -> list[str]:
    """Every module of `names` that can be imported is; returns those that cannot. `between` is called after each."""
    failed = []
    for name in names:
        if name in sys.modules:
            continue
        try:
            # What it warns of is for our log. To silence it, filters would have to be put back: those that it sets,
            # too.
            importlib.import_module(name)
        except Barred:
            raise
        except BaseException:
            # Whatever it is, it is not for us to die of: some raise what no `except Exception` catches.
            failed.append(name)
        between()
    return failed
