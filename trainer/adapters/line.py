"""Command lines: finds given options, spells options, and finds the place for added words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .program import Option, Parser, Program

_PLAIN = re.compile(r"[A-Za-z0-9_/.\-+@:%]*")


def given(program: Program, parser: Parser, option: Option, arguments: Sequence[str]) -> bool:
    """Whether the user has given the option, in any form that its parser takes."""
    for argument in arguments:
        if argument == "--" and parser.kind != "hydra":
            return False
        head = argument.partition("=")[0]
        if parser.kind == "hydra":
            found = "=" in argument and head.lstrip("+~") in option.names
        elif parser.kind in ("fire", "absl", "configurator"):
            found = head.startswith("-") and head.lstrip("-").replace("-", "_").removeprefix("no") in _keys(option)
        else:
            found = head in option.names or _is_short(option, argument) or _is_shortened(program, option, head)
        if found:
            return True
    return False


def _keys(option: Option) -> set[str]:
    keys = {name.lstrip("-").replace("-", "_") for name in option.names}
    return keys | {key.removeprefix("no") for key in keys}


def _is_short(option: Option, argument: str) -> bool:
    """The form `-rPATH`."""
    return argument[:2] in option.names and len(argument) > 2 and argument[1] != "-"


def _is_shortened(program: Program, option: Option, head: str) -> bool:
    """argparse takes `--res` for `--resume`, unless another option has that name."""
    if not head.startswith("--") or len(head) < 4 or not any(name.startswith(head) for name in option.names):
        return False
    return not any(head in other.names for _, other in program.options())


def spelled(parser: Parser, option: Option, value: str | None) -> tuple[str, ...]:
    """The option with that value (None: a flag without a value), in one word if possible. Then the next word is not
    taken for its value, nor its value for a positional argument."""
    if parser.kind == "hydra":
        return (f"{option.names[0]}={_quoted(value or 'true')}",)
    name = max(option.names, key=len)
    if not name.startswith("-"):
        name = f"--{name}"
    if value is None:
        return (name,)
    return (name, value) if len(name) == 2 else (f"{name}={value}",)


def _quoted(value: str) -> str:
    """Quotes `value` as hydra's grammar asks."""
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def place(command: Sequence[str], after: Sequence[str], last: bool) -> int | None:
    """The index in `command` (script first) for added words: right behind the script, or behind the subcommands that
    lead to the parser. No option that could take them as its value is before them. None if a subcommand is missing."""
    if last:
        return len(command)
    index = 1
    for word in after:
        try:
            index = command.index(word, index) + 1
        except ValueError:
            return None
    return index


def value(parser: Parser, option: Option, arguments: Sequence[str]) -> str | None:
    """The last value of the option. None if it was not given, or given without a value."""
    found = None
    for index, argument in enumerate(arguments):
        head, equals, rest = argument.partition("=")
        if not given(Program(), parser, option, [argument]):
            continue
        if equals:
            found = rest
        elif head in option.names and index + 1 < len(arguments):
            found = arguments[index + 1]
    return found
