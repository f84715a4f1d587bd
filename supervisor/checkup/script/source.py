"""The facts in the source of a script: its imports, its calls, its options. Pure: text in, values out."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trainer.adapters.program import CONFIGURATOR, Option, Parser, Scalar, compared

_SPAWN = ("torch.multiprocessing.spawn", "torch.multiprocessing.start_processes")
_MOST_HOPS = 20
"""Names that lead to a name: `a = b`, `class A(B)`."""


class Unreadable(ValueError):
    """The text is no Python. The message is one line."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `name` is as in the module that defines it: `torch.save`, `transformers.Trainer.train`; or it begins
    with a variable of which nothing is known."""

    name: str
    file: str
    line: int
    given: dict[str, Scalar] = field(default_factory=dict)
    """The named arguments that are constants."""

    @property
    def root(self) -> str:
        return self.name.partition(".")[0]

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Source:
    """The facts in one file, or in several together."""

    imports: dict[str, str] = field(default_factory=dict)
    """The imported modules, with the first place of each. The name of a relative import begins with dots."""
    touched: frozenset[str] = frozenset()
    """What it imports from modules, with their names: a lazy module is loaded by that."""
    calls: tuple[Call, ...] = ()
    parsers: tuple[Parser, ...] = ()
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    """The environment variables that it sets, with the place."""

    @property
    def spawning(self) -> Call | None:
        """The first call that starts ranks."""
        return next((call for call in self.calls if call.name in _SPAWN), None)

    def __add__(self, other: Source) -> Source:
        return Source(
            {**other.imports, **self.imports},
            self.touched | other.touched,
            self.calls + other.calls,
            self.parsers + other.parsers,
            {**other.words, **self.words},
            {**other.variables, **self.variables},
        )


def read(text: bytes, file: str) -> Source:
    """The facts in `text`, which is the content of `file`. Unreadable if it is no Python of this interpreter."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its escapes
            tree = ast.parse(text)
    except SyntaxError as error:
        place = f"{file}:{error.lineno}" if error.lineno else file
        raise Unreadable(f"{place}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unreadable(f"{file}: it cannot be parsed: {str(error) or type(error).__name__}") from None
    names = _Names(tree)
    calls = [call for node in ast.walk(tree) if (call := _call(node, names, file)) is not None]
    options = [option for node in ast.walk(tree) if isinstance(node, ast.Call) and (option := _option(node))]
    parsers = [Parser("argparse", tuple(options))] if options else []
    if CONFIGURATOR.search(text.decode(errors="replace")):
        parsers.append(Parser("configurator", tuple(_globals(tree))))
    calls.sort(key=lambda call: call.line)
    imports, touched = _imports(tree, file)
    touched |= {call.name for call in calls if call.root in {name.partition(".")[0] for name in imports}}
    return Source(
        imports, frozenset(touched), tuple(calls), tuple(parsers), compared(tree), _variables(tree, names, file)
    )


class _Names:
    """What the names in a file stand for, as far as its imports and plain assignments tell."""

    def __init__(self, tree: ast.AST) -> None:
        self._known: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for each in node.names:
                    root = each.name.partition(".")[0]
                    self._known[each.asname or root] = each.name if each.asname else root
            elif isinstance(node, ast.ImportFrom) and not node.level:
                self._known |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.bases:
                self._learn(node.name, _dotted(node.bases[0]))
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                for target in node.targets:
                    self._learn(_dotted(target), _dotted(node.value.func))

    def _learn(self, name: str, what: str) -> None:
        if name and what and name != what:
            self._known.setdefault(name, what)

    def full(self, name: str) -> str:
        for _ in range(_MOST_HOPS):
            head = name
            while head and head not in self._known:
                head = head.rpartition(".")[0]
            if not head or (longer := self._known[head] + name[len(head) :]) == name:
                break
            name = longer
            if self._known[head].startswith(f"{head}."):
                break
        return name[:200]


def _dotted(node: ast.AST) -> str:
    """`a.b.c` of such an expression. Empty for another one."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _call(node: ast.AST, names: _Names, file: str) -> Call | None:
    if not isinstance(node, ast.Call):
        return None
    name = _dotted(node.func)
    if not name and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call):
        # Trainer(…).fit(…)
        inner = _dotted(node.func.value.func)
        name = f"{inner}.{node.func.attr}" if inner else ""
    return Call(names.full(name), file, node.lineno, _constants(node)) if name else None


def _constants(call: ast.Call) -> dict[str, Scalar]:
    given = {word.arg: word.value.value for word in call.keywords if word.arg and isinstance(word.value, ast.Constant)}
    return {
        name: value for name, value in given.items() if value is None or isinstance(value, bool | int | float | str)
    }


def _option(call: ast.Call) -> Option | None:
    """The option that a call of `add_argument` declares, or one of click's `option`."""
    named = isinstance(call.func, ast.Attribute) and call.func.attr in ("add_argument", "option")
    names = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    names = [name for name in names if name.startswith("-")]
    if not named or not names:
        return None
    given: dict[str, Any] = _constants(call)
    kinds = {word.arg: _dotted(word.value) for word in call.keywords}
    action = str(given.get("action") or ("store_true" if given.get("is_flag") else "store"))
    dest = str(given.get("dest") or max(names, key=len).lstrip("-").replace("-", "_"))
    choices = next((word.value for word in call.keywords if word.arg == "choices"), None)
    words = [each.value for each in getattr(choices, "elts", ()) if isinstance(each, ast.Constant)]
    help_ = str(given.get("help") or "")
    return Option(
        tuple(names),
        dest,
        action,
        kinds.get("type") or "",
        given.get("nargs"),
        given.get("const"),
        given.get("default"),
        tuple(map(str, words)),
        help_,
    )


def _globals(tree: ast.Module) -> Iterator[Option]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            value = node.value.value
            if isinstance(value, bool | int | float | str):
                for target in node.targets:
                    if isinstance(target, ast.Name) and not target.id.startswith("_"):
                        yield Option((target.id,), target.id, type=type(value).__name__, default=value)


def _imports(tree: ast.AST, file: str) -> tuple[dict[str, str], set[str]]:
    found: dict[str, str] = {}
    touched: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                found.setdefault(each.name, f"{file}:{node.lineno}")
        elif isinstance(node, ast.ImportFrom):
            found.setdefault("." * node.level + (node.module or ""), f"{file}:{node.lineno}")
            if not node.level:
                touched |= {f"{node.module}.{each.name}" for each in node.names if each.name != "*"}
    return found, touched


def _variables(tree: ast.AST, names: _Names, file: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        key: ast.expr | None
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            where, key = node.targets[0].value, node.targets[0].slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setdefault":
            where, key = node.func.value, node.args[0] if node.args else None
        else:
            continue
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and names.full(_dotted(where)) == "os.environ":
            found.setdefault(key.value, f"{file}:{node.lineno}")
    return found
