"""The source around the line of a thread: the loop around it, and whether the line calls anything."""

from __future__ import annotations

import ast
import contextlib
from functools import lru_cache
from pathlib import Path

from supervisor.core.sample import Loop

_LARGEST = 1 << 20
"""The most bytes of source that are read."""
_PLAIN = (ast.Pass, ast.Continue, ast.Break, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.While, ast.If, ast.Expr)
_FOR = (ast.For, ast.AsyncFor, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_WORK = (ast.Call, ast.Await, ast.Subscript, ast.MatMult, ast.Pow, ast.Yield, ast.YieldFrom, *_FOR[2:])


def about(folder: Path, file: str, line: int) -> tuple[Loop, bool]:
    """The innermost loop around the line of `file` (relative to `folder`, or absolute), and whether the line is plain.
    A plain line calls nothing, so no library can be at work in it. If the source cannot be read: no loop, and not
    plain."""
    with contextlib.suppress(OSError, ValueError, RecursionError, MemoryError):
        path = folder / file
        found = path.stat()
        if found.st_size <= _LARGEST:
            return _about(str(path), found.st_mtime_ns, line)
    return Loop.NONE, False


@lru_cache(maxsize=256)
def _about(path: str, written: int, line: int) -> tuple[Loop, bool]:
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, UnicodeDecodeError):
        return Loop.NONE, False
    around: list[ast.AST] = []
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop(0)
        begin = getattr(node, "lineno", None)
        if begin is None or begin <= line <= (getattr(node, "end_lineno", None) or begin):
            around.append(node)
            nodes.extend(ast.iter_child_nodes(node))
    loop = Loop.NONE
    for node in around:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and node.lineno < line:
            loop = Loop.NONE
        elif isinstance(node, ast.While):
            loop = Loop.WHILE
        elif isinstance(node, _FOR):
            loop = Loop.FOR
    on_line = [n for n in around if getattr(n, "lineno", 0) == line]
    plain = any(isinstance(n, _PLAIN) for n in on_line) and not any(isinstance(n, _WORK) for n in on_line)
    return loop, plain
