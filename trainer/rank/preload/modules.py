"""The imports of a script. They are learned once; then the fork server imports them before the next attempt needs
them."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ...rundir.files.codec import encode
from ...rundir.files.durable import replace_file
from ...rundir.records.learned import remembered

ALWAYS = (
    "torch",
    "torch.distributed.run",
    "torch.distributed.launcher.api",
    "torch.nn.parallel",
    # The first optimizer and DDP's constructor import it. That takes a second, which would be spent after the kill.
    "torch._dynamo",
)
_MOST = 5000
_RARELY = (1_000_000, 1000, 1000)
_OURS = str(Path(__file__).parents[2]) + os.sep


def third_party() -> list[str]:
    """The names of the loaded modules that were installed, in the order of loading. This package's modules are among
    them. Not among them: the standard library, the script's own modules, and second names of a module (in the next
    attempt such a name may be the user's)."""
    names = []
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        origin = getattr(spec, "origin", None) or ""
        installed = origin.startswith(_OURS) or "-packages" + os.sep in origin
        if installed and getattr(spec, "name", None) == name and name.partition(".")[0] not in sys.stdlib_module_names:
            names.append(name)
    return names[:_MOST]


class Barred(BaseException):
    """A module was imported that must not be. No `except Exception` on the way can take it for a missing module."""


def remember(path: Path) -> None:
    """`path` lists the modules that third_party() finds now. On a full disk only the list is lost."""
    names = third_party()
    if names != remembered(path):
        with contextlib.suppress(OSError):
            replace_file(path, encode(names))


def load(names: Iterable[str], between: Callable[[], None] = lambda: None) -> list[str]:
    """Imports every module of `names`. Returns the names that cannot be imported. `between` is called after each."""
    failed = []
    for name in names:
        if name in sys.modules:
            continue
        try:
            # Its warnings go to our log. To silence them, the filters would have to be put back, with those that it
            # sets.
            with _collected_rarely() if name in ALWAYS else contextlib.nullcontext():
                importlib.import_module(name)
        except Barred:
            raise
        except BaseException:
            # No exception of an import may end us: some modules raise one that `except Exception` does not catch.
            failed.append(name)
        between()
    return failed


@contextlib.contextmanager
def _collected_rarely() -> Iterator[None]:
    """The garbage collector looks rarely meanwhile. It takes a third of an import of torch, again and again through
    what stays. Only for modules that neither read nor set when it looks."""
    before = gc.get_threshold()
    gc.set_threshold(*(_RARELY if before[0] else before))
    try:
        yield
    finally:
        gc.set_threshold(*before)
