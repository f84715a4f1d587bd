"""Types of the command line's values, and the sources of a value: flag, SUPERVISE_*, supervise.toml, default."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from supervisor.commands.values import ParamType
from supervisor.core.model import Do
from supervisor.core.rules import CHOICES, DEFAULTS, FIXED, can
from supervisor.errors import Refusal
from supervisor.run.spec import DEFAULTS as SPEC_DEFAULTS
from trainer.rundir.duration import LONGEST, parse_duration, spelled
from trainer.rundir.nearest import did_you_mean
from trainer.rundir.records.faults import FaultSpecError, parse_fault

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "SUPERVISE_"
LEAST_LIMIT = 0.1
"""Seconds. A limit that is shorter, as 0 for "off", ends ranks that are well."""


def key_of(names: Iterable[str]) -> str:
    """An option's name in supervise.toml."""
    return next(n for n in names if n.startswith("--")).split("/")[0][2:].replace("-", "_")


def setting(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """An option that SUPERVISE_* and supervise.toml can set too. Its default is that of Spec or Policy."""
    key = key_of(names)
    default = SPEC_DEFAULTS.get(key)
    spelled = getattr(settings.get("type"), "spelled", None)
    settings = {"default": spelled(default) if spelled else default, "show_default": True, **settings}
    made: Callable[[Any], Any] = click.option(*names, envvar=PREFIX + key.upper(), **settings)
    return made


class Duration(ParamType[Any]):
    """Seconds, from 30s 5m 2h, at `least` and `most` so many. The `words` are accepted as they are."""

    name = "duration"

    def __init__(self, words: dict[str, Any] | None = None, least: float = 0.0, most: float = LONGEST) -> None:
        self._words, self._least, self._most = words or {}, least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value is None or isinstance(value, int | float):
            return value
        if isinstance(value, str) and value in self._words:
            return self._words[value]
        words = f" (or {', '.join(self._words)})" if self._words else ""
        try:
            seconds = parse_duration(str(value))
        except ValueError as error:
            self.fail(f"{error}{words}", param, ctx)
        if seconds < self._least:
            self.fail(f"{value!r} is too short; the least is {spelled(self._least)}{words}", param, ctx)
        if seconds > self._most:
            self.fail(f"{value!r} is more than {spelled(self._most)}{words}", param, ctx)
        return seconds

    def spelled(self, value: Any) -> str:
        return next((word for word, means in self._words.items() if means == value), "") or spelled(value)


class Range(ParamType[Any]):
    """Two durations, MIN:MAX."""

    name = "min:max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        low, colon, high = str(value).partition(":")
        try:
            pair = parse_duration(low), parse_duration(high if colon else low)
        except ValueError as error:
            self.fail(f"{error}; write MIN:MAX, as in 1s:5m", param, ctx)
        if pair[0] > pair[1]:
            self.fail(f"{value!r}: the minimum is above the maximum", param, ctx)
        return pair

    def spelled(self, value: tuple[float, float]) -> str:
        return ":".join(map(spelled, value))


class Words(ParamType[Any]):
    """Words as a shell splits them."""

    name = "words"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            shlex.split(str(value))
        except ValueError as error:
            self.fail(f"{value!r}: {str(error).lower()}", param, ctx)
        return str(value)


class Nproc(ParamType[Any]):
    """Ranks to start: a number, or `auto` for one per GPU (without a GPU, one per core). torchrun's `gpu` is for a
    machine that has some, its `cpu` is one per core."""

    name = "n|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        cores = os.cpu_count() or 1
        if value in ("auto", "gpu", "cpu"):
            gpus = 0 if value == "cpu" else count_gpus()
            if value == "gpu" and not gpus:
                self.fail("'gpu' is one rank per GPU, and nvidia-smi lists none", param, ctx)
            return gpus or cores
        if not re.fullmatch(r"-?\d{1,99}", str(value)):
            self.fail(f"{value!r:.40} is neither a number nor 'auto', 'gpu' or 'cpu'", param, ctx)
        count = int(value)
        most = max(32, 16 * cores, 2 * count_gpus() if count > 32 else 0)
        if count < 1:
            self.fail(f"{count} ranks cannot train; ask for at least 1", param, ctx)
        if count > most:
            self.fail(f"{count} ranks on {cores} cores is by far too many; ask for at most {most}", param, ctx)
        return count


class FaultSpec(ParamType[Any]):
    """A fault, as trainer.rundir.records.faults reads it."""

    name = "spec"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return parse_fault(value).text
        except FaultSpecError as error:
            self.fail(str(error), param, ctx)


class CauseAction(ParamType[Any]):
    """CAUSE=ACTION: the action for a cause in place of the default. The value is (cause, action)."""

    name = "cause=action"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        cause, _, action = str(value).partition("=")
        try:
            return override(cause, action)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def override(cause: str, action: str) -> tuple[str, str]:
    """Both in the words of the table. ValueError says which words exist, or why the action is not possible."""
    name, do = cause.strip().replace("-", "_"), action.strip().replace("_", "-")
    if name in FIXED:
        raise ValueError(f"{name} cannot be overridden: {FIXED[name]}")
    causes, choices = {known.value: known for known in DEFAULTS}, [choice.value for choice in CHOICES]
    if name not in causes:
        raise ValueError(f"unknown cause {cause.strip()!r}{nearest(name, causes, '_')}")
    if do not in choices:
        raise ValueError(f"{name}: unknown action {action.strip()!r}{nearest(do, choices)}")
    if not can(causes[name], Do(do)):
        only = "only nan and exception happen in a step whose data can be skipped"
        if Do.GO_ON.value in (do, DEFAULTS[causes[name]][0].value):
            only = "only started_over can go on, and it can only go-on or stop"
        raise ValueError(f"{name} = {do}: {only}")
    return name, do


def count_gpus() -> int:
    """The number of GPUs that nvidia-smi lists; 0 without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def read_config(path: Path | None, known: Iterable[str]) -> dict[str, Any]:
    """The settings of `path` (or of ./supervise.toml if it exists), by option name. Its table [policy] comes as pairs
    of cause and action, [notify] as it is.

    A value that a flag refuses is refused here too: values are as they would be written on the command line. Refusal if
    the file cannot be read, or if a key is not in `known`. The text names the nearest known key.
    """
    chosen = path or Path("supervise.toml")
    try:
        body = tomllib.loads(chosen.read_text())
    except FileNotFoundError:
        if path is None:
            return {}
        raise Refusal(f"no config file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{chosen} cannot be read: {error}") from None
    except ValueError as error:
        # It is a TOMLDecodeError, or a number with more digits than Python reads. tomllib lets such a number through.
        raise Refusal(f"{chosen} is not TOML: {error}") from None
    except RecursionError:
        raise Refusal(f"{chosen} is nested too deep") from None
    names = {name.replace("-", "_"): name for name in known}
    settings = {}
    for key, value in body.items():
        plain = key.replace("-", "_")
        if plain not in names:
            raise Refusal(f"{chosen}: unknown key {key!r}{nearest(plain, names)}")
        if plain == "notify":
            settings[plain] = value
            continue
        if plain == "policy":
            if not isinstance(value, dict):
                raise Refusal(f'{chosen}: policy is a table; write [policy] and below it, say, host_oom = "stop"')
            try:
                value = [override(cause, str(action)) for cause, action in value.items()]
            except ValueError as error:
                raise Refusal(f"{chosen}: [policy] {error}") from None
        elif isinstance(value, dict):
            raise Refusal(f"{chosen}: {key!r} is a table; write it as a key of its own: {key} = …")
        else:
            value = [_written(each) for each in value] if isinstance(value, list) else _written(value)
        settings[plain] = value
    return settings


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def nearest(word: str, known: Iterable[str], joint: str = "-") -> str:
    """`; did you mean …?`, or the known words. The parts of a name are joined by `joint`."""
    names = [name.replace("_", "-").replace("-", joint) for name in known]
    return f"; {did_you_mean(word.replace('_', '-').replace('-', joint), sorted(names))}"
