"""The options of a program. They are recorded from the parsers that read its command line, from any known library.

These are argparse and its derivatives (HfArgumentParser, jsonargparse, tyro's copy), click and typer, absl, fire,
hydra's configuration, and nanoGPT's configurator. If a library is not imported, this costs nothing. It never raises: a
program must not fail because we looked at it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ...adapters.program import Option, Parser, Program, Scalar
from ...rundir.files.codec import encode, read
from ...rundir.files.durable import replace_soon
from ...rundir.secrets import Redactor
from ..imports import after_import
from .source import configurator_keys, words_of

_MOST_PARSERS, _MOST_OPTIONS, _LONGEST = 20, 2000, 1000
_FRAMEWORKS = (
    "accelerate composer deepspeed detectron2 fairseq lightning mmengine pytorch_lightning speechbrain timm".split()
)
_FRAMEWORKS += "torchtitan torchtune transformers ultralytics".split()
_KINDS = {"_StoreAction": "store", "_StoreTrueAction": "store_true", "_StoreFalseAction": "store_false"}
_KINDS |= {
    "_StoreConstAction": "store_const",
    "_AppendAction": "append",
    "_CountAction": "count",
    "_HelpAction": "help",
}
_KINDS |= {"_VersionAction": "version", "BooleanOptionalAction": "boolean"}


class Recorder:
    """The recorder of one process. The facts about its program are in the file `path`, rewritten at each new fact."""

    def __init__(self, path: Path, world: int, more: bool = False) -> None:
        """`more`: the file has what an earlier attempt has shown. That stays, and only facts and uses are added."""
        self._path, self._pid = path, os.getpid()
        self._redactor = Redactor(os.environ)
        self._program = Program(world=world)
        self._more, self._unread = more, more

    def watch(self) -> None:
        """The parsers are watched from now on."""
        after_import(
            {
                "argparse": self._watch_argparse,
                "tyro._argparse": self._watch_argparse,
                "click.core": self._watch_click,
                "typer._click.core": self._watch_click,
                "absl.flags._flagvalues": self._watch_absl,
                "fire.core": self._watch_fire,
                "hydra.core.utils": self._watch_hydra,
            }
        )

    def uses(self, name: str) -> None:
        """Notes that the program uses that framework."""
        self._read()
        if name not in self._program.uses:
            self._learn(replace(self._program, uses=self._program.uses | {name}))

    def fact(self, name: str, value: str) -> None:
        """Notes a fact that an adapter needs in a later attempt."""
        self._read()
        # A folder with the time in its name has another one each time.
        stays = self._more and name in self._program.facts
        if not stays and self._program.facts.get(name) != value:
            self._learn(replace(self._program, facts={**self._program.facts, name: value}))

    def first_step(self) -> None:
        """The program has begun to train. Now the facts from its script's source and its globals are known too."""
        main = sys.modules.get("__main__")
        path = getattr(main, "__file__", None)
        if main is None or not isinstance(path, str):
            return
        program = replace(self._program, words=words_of(path), imports=_imported(), trained=True)
        if keys := configurator_keys(path, vars(main)):
            options = [Option((key,), key, type=type(value).__name__, default=_scalar(value)) for key, value in keys]
            program = replace(program, parsers=(*program.parsers, Parser("configurator", tuple(options))))
        self._learn(program)

    def _read(self) -> None:
        """Once, and only if there is something to add: a start should not wait for it."""
        if self._unread:
            self._unread = False
            with contextlib.suppress(OSError, ValueError):
                self._program = read(self._path, Program)

    def _learn(self, program: Program) -> None:
        # A file that could not be read is no place to add to.
        unknown = self._more and not self._program.trained
        if os.getpid() != self._pid or len(program.parsers) > _MOST_PARSERS or unknown:
            return
        self._program = program if self._more else replace(program, argv=tuple(sys.argv[1:]))
        with contextlib.suppress(OSError, ValueError, RecursionError):
            replace_soon(self._path, self._redactor.json(encode(self._program)))

    def _parsed(self, kind: str, options: Iterable[Option], after: Sequence[str] = ()) -> None:
        new = Parser(
            kind, tuple(option for _, option in zip(range(_MOST_OPTIONS), options, strict=False)), tuple(after)
        )
        same = [p for p in self._program.parsers if (p.kind, p.after) != (kind, new.after) or p.options != new.options]
        self._learn(replace(self._program, parsers=(*same, new)))

    # ── libraries ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _watch_argparse(self, module: ModuleType) -> None:
        """Wraps `_parse_known_args`. All ways of parsing in argparse lead to it, and jsonargparse's too."""
        parser: Any = module.ArgumentParser
        original = getattr(parser, "_parse_known_args", None)
        if original is None:
            return
        above: list[Any] = []

        @functools.wraps(original)
        def parse(self: Any, arguments: Any, *args: Any, **kwargs: Any) -> Any:
            if _is_own(arguments):
                with contextlib.suppress(Exception):
                    recorded(
                        [_of_argparse(action) for action in self._actions if action.option_strings], _path(above, self)
                    )
            above.append(self)
            try:
                return original(self, arguments, *args, **kwargs)
            finally:
                above.pop()

        recorded = functools.partial(self._parsed, "argparse")
        parser._parse_known_args = parse

    def _watch_click(self, module: ModuleType) -> None:
        command: Any = module.Command
        original = command.parse_args
        recorded = functools.partial(self._parsed, "click")

        @functools.wraps(original)
        def parse_args(self: Any, ctx: Any, args: Any) -> Any:
            with contextlib.suppress(Exception):
                after: list[str] = []
                above = ctx
                while above.parent is not None:
                    after.insert(0, str(above.info_name))
                    above = above.parent
                recorded(
                    [_of_click(each) for each in self.params if getattr(each, "param_type_name", "") == "option"], after
                )
            return original(self, ctx, args)

        command.parse_args = parse_args

    def _watch_absl(self, module: ModuleType) -> None:
        flags: Any = module.FlagValues
        original = flags.__call__
        recorded = functools.partial(self._parsed, "absl")

        @functools.wraps(original)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with contextlib.suppress(Exception):
                recorded([_of_absl(name, flag) for name, flag in self._flags().items()])
            return original(self, *args, **kwargs)

        flags.__call__ = call

    def _watch_fire(self, module: ModuleType) -> None:
        original: Callable[..., Any] = module.Fire

        @functools.wraps(original)
        def fire(component: Any = None, *args: Any, **kwargs: Any) -> Any:
            with contextlib.suppress(Exception):
                found = inspect.signature(component).parameters.values()
                text = inspect.getdoc(component) or ""
                self._parsed("fire", [_of_parameter(each, text) for each in found if each.kind is not each.VAR_KEYWORD])
            return original(component, *args, **kwargs)

        where: Any
        for where in (module, sys.modules.get("fire")):
            if getattr(where, "Fire", None) is original:
                where.Fire = fire

    def _watch_hydra(self, module: ModuleType) -> None:
        original: Callable[..., Any] = module.run_job

        @functools.wraps(original)
        def run_job(task_function: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
            def task(given: Any) -> Any:
                with contextlib.suppress(Exception):
                    self.uses("hydra")
                    known = sys.modules["hydra.core.hydra_config"].HydraConfig.get()
                    self.fact("hydra.run.dir", str(known.runtime.output_dir))
                    self._parsed("hydra", [*_of_config("", given)])
                return task_function(given)

            return original(task, config, *args, **kwargs)

        where: Any
        for where in (module, sys.modules.get("hydra._internal.hydra"), *_launchers()):
            if getattr(where, "run_job", None) is original:
                where.run_job = run_job


def _imported() -> frozenset[str]:
    return frozenset(name for name in _FRAMEWORKS if name in sys.modules)


def _launchers() -> list[Any]:
    return [module for name, module in list(sys.modules.items()) if name.startswith("hydra._internal.core_plugins")]


def _is_own(arguments: Any) -> bool:
    """Whether a parser reads the program's own command line, or the part that another parser has left."""
    given, rest = list(arguments), iter(sys.argv[1:])
    return all(word in rest for word in given) and (bool(given) or len(sys.argv) == 1)


def _path(above: Sequence[Any], parser: Any) -> list[str]:
    """The subcommands that lead to `parser`. It parses inside the parsers `above` it."""
    words = []
    for outer, inner in zip(above, [*above[1:], parser], strict=False):
        for action in outer._actions:
            choices = action.choices if isinstance(action.choices, dict) else {}
            words += [name for name, each in choices.items() if each is inner and name in sys.argv][:1]
    return words


def _of_argparse(action: Any) -> Option:
    hint = getattr(action, "_typehint", None)
    return Option(
        tuple(action.option_strings),
        str(action.dest),
        _KINDS.get(type(action).__name__, "store"),
        _type(hint if hint is not None else action.type),
        "..." if action.nargs == "..." else _scalar(action.nargs),
        _scalar(action.const),
        _scalar(action.default),
        tuple(str(choice) for choice in action.choices or ())[:100],
        str(action.help or "")[:_LONGEST],
    )


def _of_click(option: Any) -> Option:
    action = "store_true" if getattr(option, "is_flag", False) else "append" if option.multiple else "store"
    default = option.default() if callable(option.default) else option.default
    choices = tuple(map(str, getattr(option.type, "choices", ())))[:100]
    kind = {"text": "str", "integer": "int", "boolean": "bool"}.get(str(option.type.name), str(option.type.name))
    text = str(getattr(option, "help", None) or "")[:_LONGEST]
    return Option(
        tuple(option.opts), str(option.name), action, kind, default=_scalar(default), choices=choices, help=text
    )


def _of_absl(name: str, flag: Any) -> Option:
    action = "store_true" if flag.boolean else "store"
    return Option(
        (f"--{name}",), name, action, str(flag.flag_type()), default=_scalar(flag.default), help=str(flag.help)
    )


def _of_parameter(parameter: Any, text: str) -> Option:
    """`text`: the function's documentation. It has a line `name (type): help`, as a rule."""
    told = re.search(rf"^\s*{re.escape(parameter.name)}\b[^:\n]*:(.*)$", text, re.MULTILINE)
    default = None if parameter.default is parameter.empty else _scalar(parameter.default)
    kind = "" if parameter.annotation is parameter.empty else _type(parameter.annotation)
    kind = kind or type(default).__name__
    text = told[1].strip()[:_LONGEST] if told is not None else ""
    return Option((f"--{parameter.name}",), parameter.name, type=kind, default=default, help=text)


def _of_config(prefix: str, config: Any) -> Iterable[Option]:
    """The keys of hydra's configuration. A value that needs interpolation is not resolved."""
    for key in config:
        name = f"{prefix}{key}"
        value = None if config._is_missing(key) or config._is_interpolation(key) else config[key]
        if hasattr(value, "_is_missing") and hasattr(value, "keys"):
            yield from _of_config(f"{name}.", value)
        else:
            kind = "" if value is None else type(value).__name__
            yield Option((name,), name, type=kind, default=_scalar(value))


def _type(kind: Any) -> str:
    if kind is None:
        return ""
    return str(getattr(kind, "__name__", kind) if isinstance(kind, type) or callable(kind) else kind)[:200]


def _scalar(value: Any) -> Scalar:
    """The value if JSON can hold it, else None."""
    if isinstance(value, str):
        return value[:_LONGEST]
    if isinstance(value, float) and value not in (float("inf"), float("-inf")) and value == value:
        return value
    return value if isinstance(value, bool | int) and abs(value) < 1 << 63 else None
