"""Watches imports. It finds the modules whose own code harms a process that forks, and the modules that import them.

Read in CPython 3.10 to 3.13: `importlib._bootstrap` looks up two functions by name. `_load_unlocked` executes a module,
`_gcd_import` is import_module(). If they are gone, only the requested names can be told apart.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.abc
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import MappingProxyType, TracebackType
from typing import Any

from ...rundir.variables import LAUNCHERS
from ..program import installed
from . import fitness, rank_zero
from .modules import Barred
from .variables import Reads, is_read

_BOOTSTRAP: Any = importlib._bootstrap
_OURS = __name__.partition(".")[0]
_OF_A_RANK = re.compile(LAUNCHERS.pattern + r"|SUPERVISE_.*")
"""The variables that a rank has and the fork server has not."""


class ImportWatch:
    """Inside its block every import of this process is watched. Names in `left_out` cannot be imported."""

    def __init__(
        self,
        left_out: Iterable[str],
        told: Callable[[list[str]], None],
        between: Callable[[], None] = lambda: None,
        late: Mapping[str, Iterable[str]] = MappingProxyType({}),
    ) -> None:
        """`told` is called with the modules that are being executed, outermost first. `between` is called between
        modules. `late`: for each variable that the script sets, the modules that it imports afterwards."""
        self.causes: dict[str, str] = {}
        """For each harmful module: what its import did."""
        self.barred: set[str] = set()
        """Modules that imported, or tried to import, a module that is left out."""
        self._left_out = set(left_out)
        self._told, self._between = told, between
        self._stack: list[str] = []
        self._importers: defaultdict[str, set[str]] = defaultdict(set)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._at = time.process_time()
        self._threads = fitness.threads()
        self._cuda = fitness.cuda_runs()
        self._habits = fitness.habits()
        self._reads = Reads(self._read)
        self._late = {variable: set(names) for variable, names in late.items()}
        self._began, self._installed = dict(os.environ), installed()
        self.reads: defaultdict[str, set[str]] = defaultdict(set)
        """For each module: the variables that its import has read, and that no import had set."""

    def __enter__(self) -> ImportWatch:
        self._replaced: list[tuple[Any, str, Any]] = []
        self._finder = _Bar(self)
        sys.meta_path.insert(0, self._finder)
        self._replace(builtins, "__import__", self._around_import)
        self._replace(_BOOTSTRAP, "_gcd_import", self._around_gcd_import)
        self._replace(_BOOTSTRAP, "_load_unlocked", self._around_load)
        self._reads.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._reads.__exit__(kind, error, at)
        while self._replaced:
            setattr(*self._replaced.pop())
        sys.meta_path.remove(self._finder)

    def _replace(self, where: Any, name: str, around: Callable[[Any], Any]) -> None:
        if hasattr(where, name):
            plain = getattr(where, name)
            self._replaced.append((where, name, plain))
            setattr(where, name, around(plain))

    def _around_import(self, plain: Any) -> Any:
        def import_(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
            module = plain(name, globals, locals, fromlist, level)
            self._imported(_absolute(name, globals, level), fromlist or ())
            return module

        return import_

    def _around_gcd_import(self, plain: Any) -> Any:
        def gcd_import(name: str, package: Any = None, level: int = 0) -> Any:
            module = plain(name, package, level)
            self._imported(getattr(module, "__name__", name), ())
            return module

        return gcd_import

    def _around_load(self, plain: Any) -> Any:
        def load_unlocked(spec: ModuleSpec) -> Any:
            with self.executing(spec.name):
                return plain(spec)

        return load_unlocked

    @contextmanager
    def executing(self, name: str) -> Iterator[None]:
        """The block is the execution of module `name`."""
        if self._stack:
            # The outer module made the changes so far, not the module that it imports.
            self._look(self._stack[-1])
            self._importers[name].add(self._stack[-1])
        self._account(self._stack[-1] if self._stack else "")
        self._stack.append(name)
        self._told(self._stack)
        try:
            yield
        finally:
            self._look(name)
            self._judge(name)
            self._stack.pop()
            self._account(name)
            self._told(self._stack)
            self._between()

    def left_out(self) -> set[str]:
        """The harmful modules, and every module seen that imports one of them or lies in one."""
        out = {*self._left_out, *self.causes, *self.barred}
        waiting = list(out)
        known = [name for name in sys.modules if "." in name]
        while waiting:
            name = waiting.pop()
            below = [module for module in known if module.startswith(name + ".")]
            for other in {*self._importers.get(name, ()), *below} - out:
                out.add(other)
                waiting.append(other)
        return out

    def seconds(self, names: Iterable[str]) -> float:
        """The CPU seconds that the execution of `names` took."""
        return sum(self._seconds.get(name, 0.0) for name in names)

    def _account(self, name: str) -> None:
        now = time.process_time()
        self._seconds[name] += now - self._at
        self._at = now

    def _imported(self, name: str, fromlist: Iterable[str]) -> None:
        if not self._stack:
            return
        importer = self._stack[-1]
        for each in (name, *(f"{name}.{item}" for item in fromlist)):
            if each != importer and each in sys.modules:
                self._importers[each].add(importer)

    def _look(self, name: str) -> None:
        """Changes since the last look are the work of `name`. Of nested imports, the innermost ends first."""
        if (count := fitness.threads()) != self._threads:
            if count > self._threads:
                fitness.step_aside()
                count = fitness.threads()
                if count > self._threads:
                    self._blame(name, f"starts a thread ({fitness.thread_names()[-1]})")
            self._threads = count
        if not self._cuda and fitness.cuda_runs():
            self._cuda = True
            self._blame(name, "starts CUDA, which then works in no fork")
        habits = fitness.habits()
        if habits != self._habits:
            changed = [what for what, value in habits.items() if value != self._habits[what]]
            self._blame(name, f"changes {' and '.join(changed)}")
            self._habits = habits

    def _read(self, variable: str, value: str | None) -> None:
        name = self._stack[-1] if self._stack else _OURS
        if name.partition(".")[0] != _OURS and value == self._began.get(variable):
            self.reads[name].add(variable)

    def _judge(self, name: str) -> None:
        """The fork server is no rank, and no script has set anything in it. What a module keeps of such variables would
        be wrong in each of its forks. And a module that was not installed may change while the run goes on."""
        reads = self.reads.get(name, set())
        asked = sorted(filter(_OF_A_RANK.fullmatch, reads))
        if asked and not rank_zero.can_be_told(name):
            self._blame(name, f"reads {' and '.join(asked)}")
        late = [variable for variable, names in self._late.items() if name in names and is_read(variable, name, reads)]
        if late:
            self._blame(name, f"reads {' and '.join(late)}, which the script sets before")

        origin = _origin(sys.modules.get(name))
        if origin and name.partition(".")[0] not in sys.stdlib_module_names and not origin.startswith(self._installed):
            self._blame(name, f"reads {origin}, which was not installed and may change")

    def _blame(self, name: str, what: str) -> None:
        self.causes[name] = f"{self.causes[name]}, {what}" if name in self.causes else f"its import {what}"

    def bar(self, name: str) -> None:
        """`name` is being imported; Barred if it is left out."""
        if name in self._left_out:
            self.barred |= set(self._stack)
            raise Barred(name)


class _Bar(importlib.abc.MetaPathFinder):
    def __init__(self, watch: ImportWatch) -> None:
        self._watch = watch

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        self._watch.bar(fullname)


def _origin(module: Any) -> str:
    """Its file; empty if it has none."""
    spec = getattr(module, "__spec__", None)
    return (spec.origin or "") if spec is not None and spec.has_location else ""


def _absolute(name: str, globals: Any, level: int) -> str:
    if not level or not globals:
        return name
    package = globals.get("__package__") or ""
    base = package.rsplit(".", level - 1)[0] if level > 1 else package
    return f"{base}.{name}" if name else base
