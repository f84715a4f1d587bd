"""The known facts about a program: its options and the frameworks that it uses. A rank records them, all processes may
read them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a parser. For parsers that take `key=value`, `names` holds only the key."""

    names: tuple[str, ...]
    dest: str = ""
    action: str = "store"
    """argparse's action: store, store_true, store_false, store_const, append, … ; `remainder` takes all words that
    follow."""
    type: str = ""
    """The name of the type of its values: str, int, bool, a function's name. Empty if none is declared."""
    nargs: Scalar = None
    const: Scalar = None
    default: Scalar = None
    choices: tuple[str, ...] = ()
    help: str = ""

    @property
    def plain(self) -> str:
        """The name that other programs may share: lower case, words joined by `_`, without the option's groups."""
        longest = max(self.names or (self.dest,), key=len)
        return longest.lstrip("-").rpartition(".")[2].lower().replace("-", "_")

    @property
    def is_flag(self) -> bool:
        """Whether it takes no value at all."""
        return self.action in ("store_true", "store_false", "store_const", "count")


@dataclass(frozen=True, slots=True)
class Parser:
    """One parser that has read the program's command line, or a part of it."""

    kind: str
    """argparse, click, absl, fire, hydra, or configurator: globals of the script that `--name=value` overwrites."""
    options: tuple[Option, ...] = ()
    after: tuple[str, ...] = ()
    """The subcommands that lead to the parser."""


@dataclass(frozen=True, slots=True)
class Program:
    """The facts that one run of a program has shown."""

    parsers: tuple[Parser, ...] = ()
    uses: frozenset[str] = frozenset()
    """Names of frameworks that it was seen to use, as adapters call them."""
    imports: frozenset[str] = frozenset()
    """The frameworks whose modules it has loaded. Only some frameworks are looked for."""
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For the name of each variable, the strings that the script compares it with."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Facts that adapters have noted in a rank, such as hydra's output folder."""
    argv: tuple[str, ...] = ()
    """Its arguments in that run, without secrets."""
    world: int = 0
    """Its number of ranks in that run. 0 if not known."""
    trained: bool = False
    """It was seen to begin training. By then it has shown all of these facts."""

    def options(self) -> Iterator[tuple[Parser, Option]]:
        for parser in self.parsers:
            for option in parser.options:
                yield parser, option

    def option(self, plain: str) -> tuple[Parser, Option] | None:
        """The option of that name, and its parser."""
        return next(((parser, option) for parser, option in self.options() if option.plain == plain), None)


_TELLING = frozenset({"latest", "last", "auto", "resume"})
"""Words that say how a script is told to resume; a name that is compared with none of them is of no interest."""
CONFIGURATOR = re.compile(r"^exec\(open\(.*configurator\.py", re.MULTILINE)
"""In the source of a script whose globals `--name=value` overwrites."""


def compared(tree: ast.AST) -> dict[str, tuple[str, ...]]:
    """By name of a variable or attribute, the strings that it is compared with."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            texts = {text for side in sides for text in _strings(side)}
            for name in filter(None, map(_name, sides)):
                found.setdefault(name, set()).update(texts)
    return {name: tuple(sorted(texts)) for name, texts in found.items() if texts & _TELLING}


def _strings(node: ast.AST) -> list[str]:
    inner = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return [each.value for each in inner if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def _name(node: ast.AST) -> str | None:
    """`resume` of resume, args.resume and args.resume.lower()."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
        node = node.func.value
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None
