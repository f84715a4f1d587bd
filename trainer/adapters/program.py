"""What is known of a program: the options that it has, the frameworks that it uses. Recorded in a rank, read by
everybody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a parser. For those that take `key=value`, `names` holds the key alone."""

    names: tuple[str, ...]
    dest: str = ""
    action: str = "store"
    """argparse's word for it: store, store_true, store_false, store_const, append, … ; `remainder` takes all that
    follows."""
    type: str = ""
    """The name of what its values are turned into: str, int, bool, a function's name; empty where nothing is said."""
    nargs: Scalar = None
    const: Scalar = None
    default: Scalar = None
    choices: tuple[str, ...] = ()
    help: str = ""

    @property
    def plain(self) -> str:
        """Its name as other programs may have it, too: lower case, words joined by `_`, without the groups that it is
        in."""
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
    """The subcommands that lead to it."""


@dataclass(frozen=True, slots=True)
class Program:
    """What one run of it has shown."""

    parsers: tuple[Parser, ...] = ()
    uses: frozenset[str] = frozenset()
    """Names of frameworks that it was seen to use, as adapters call them."""
    imports: frozenset[str] = frozenset()
    """The frameworks, of those that are looked for, whose modules it has loaded."""
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By the name of a variable, the strings that the script compares it with."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What adapters have noted in a rank, as hydra's output folder."""
    argv: tuple[str, ...] = ()
    """Its arguments then, without secrets."""
    world: int = 0
    """Its ranks then; 0 where that is not known."""
    trained: bool = False
    """It was seen to begin to train, by when it has shown what it has."""

    def options(self) -> Iterator[tuple[Parser, Option]]:
        for parser in self.parsers:
            for option in parser.options:
                yield parser, option

    def option(self, plain: str) -> tuple[Parser, Option] | None:
        """The option of that name, and whose it is."""
        return next(((parser, option) for parser, option in self.options() if option.plain == plain), None)
