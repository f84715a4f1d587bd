"""What a program really asked the kernel, from `strace`: the same list that kernel.Recorder makes, from outside."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.kernel import Op, Tree, applied

CALLS = (
    "open,openat,creat,write,pwrite64,writev,ftruncate,truncate,fallocate,fsync,fdatasync,sync_file_range,msync,sync,syncfs,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,copy_file_range,sendfile,mmap"
)
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<.*>)?(?: .*)?$")
_HEX = re.compile(r"\\x([0-9a-f]{2})")
_FD = re.compile(r"^(?:AT_FDCWD|\d+)<(.*)>$", re.DOTALL)


def straced(command: Sequence[str], place: Path, env: dict[str, str], cwd: Path) -> str:
    """The trace of `command` and all its children, which ended well."""
    trace = place / "strace.txt"
    # With --seccomp-bpf the calls that nobody asked for do not stop.
    options = ["-f", "--seccomp-bpf", "-y", "-qq", "-xx", "-s", "10000000", "-e", f"trace={CALLS}", "-e", "signal=none"]
    done = subprocess.run(
        ["strace", *options, "-o", str(trace), *command], env=env, cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return trace.read_text()


def _whole_lines(trace: str) -> Iterator[str]:
    """Calls that were interrupted by another thread's are put together, where they ended."""
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        pid = line.split(maxsplit=1)[0]
        if line.endswith("<unfinished ...>"):
            begun[pid] = line.removesuffix("<unfinished ...>").rstrip()
        elif resumed := re.match(r"^\d+ +<\.\.\. \w+ resumed>(.*)$", line):
            yield begun.pop(pid) + resumed[1]
        else:
            yield line


def _arguments(text: str) -> list[bytes]:
    """Strings unquoted, descriptors as the path they are of."""
    found, depth, quoted, at = [], 0, False, 0
    for index, char in enumerate(text + ","):
        if char == '"':
            quoted = not quoted
        elif not quoted and char in "<{[(":
            depth += 1
        elif not quoted and char in ">}])":
            depth -= 1
        elif char == "," and not quoted and depth == 0:
            found.append(text[at:index].strip())
            at = index + 1
    return [_plain(part) for part in found]


def _plain(part: str) -> bytes:
    if part.startswith('"'):
        return bytes.fromhex(_HEX.sub(r"\1", part.strip('"')))
    if fd := _FD.match(part):
        return bytes.fromhex("".join(_HEX.findall(fd[1]))) if "\\x" in fd[1] else fd[1].encode()
    return part.encode()


def operations(trace: str, root: Path, before: Tree) -> list[Op]:
    """Of all that was done below `root`, which held `before`. AssertionError for a call that it cannot tell."""
    ops: list[Op] = []
    tree = before

    def name(path: bytes, folder: bytes = b"") -> str | None:
        full = os.path.normpath(Path(os.fsdecode(folder) or "/nowhere") / os.fsdecode(path))
        return os.path.relpath(full, root) if full == str(root) or full.startswith(f"{root}/") else None

    def add(op: Op) -> None:
        nonlocal tree
        tree = applied(tree, op)
        ops.append(op)

    # Whoever names something below `root` names that, too; most lines are of imports.
    mentioned = "".join(f"\\x{byte:02x}" for byte in os.fsencode(root.name))
    for line in _whole_lines(trace):
        call = _LINE.match(line) if mentioned in line else None
        if not call or int(call[4]) < 0:
            continue
        kind, given, result, pid = call[2], _arguments(call[3]), int(call[4]), int(call[1])
        path = name(given[0])
        if kind == "openat":
            path = name(given[1], given[0])
            if path is None or b"O_DIRECTORY" in given[2] or path == ".":
                continue
            if b"O_CREAT" in given[2] and path not in tree:
                add(Op("create", path, who=pid))
            if b"O_TRUNC" in given[2] and tree.get(path):
                add(Op("size", path, who=pid))
        elif kind in ("mkdir", "rmdir", "unlink"):
            if path is not None:
                add(Op("remove" if kind == "unlink" else kind, path, who=pid))
        elif kind in ("mkdirat", "unlinkat"):
            if (path := name(given[1], given[0])) is not None:
                flat = "mkdir" if kind == "mkdirat" else "rmdir" if b"REMOVEDIR" in given[2] else "remove"
                add(Op(flat, path, who=pid))
        elif kind in ("rename", "renameat", "renameat2", "link", "linkat"):
            at = kind not in ("rename", "link")
            source = name(given[1], given[0]) if at else path
            target = name(given[3], given[2]) if at else name(given[1])
            if source is not None and target is not None:
                add(Op("link" if kind.startswith("link") else "rename", source, target, who=pid))
        elif kind in ("fsync", "fdatasync"):
            if path is not None:
                add(Op("sync", path, who=pid))
        elif kind == "write":
            if path is not None and path in tree:
                # Every writer here writes on to the end of its file.
                add(Op("write", path, at=len(tree[path] or b""), data=given[1][:result], who=pid))
        elif kind in ("ftruncate", "truncate"):
            # To the length that it has: what was kept beyond it is given back, and nothing that a reader sees.
            if path is not None and path in tree and int(given[1]) != len(tree[path] or b""):
                add(Op("size", path, at=int(given[1]), who=pid))
        elif kind == "fallocate":
            # Room for what is to come; nothing that a reader sees.
            assert path is None or b"KEEP_SIZE" in given[1], f"makes it longer: {line}"
        elif kind == "sync_file_range":
            # Begun, not waited for: what it may have written, a power cut may leave or lose as before.
            assert path is None or given[3] == b"SYNC_FILE_RANGE_WRITE", f"waits: {line}"
        elif kind == "mmap":
            mapped = name(given[4])
            assert mapped is None or b"PROT_WRITE" not in given[2] or b"MAP_PRIVATE" in given[3], f"mapped: {line}"
        else:
            assert path is None, f"not known: {line}"
    return ops


def joined(ops: Sequence[Op]) -> list[Op]:
    """Writes to one file that follow each other are one."""
    found: list[Op] = []
    for op in ops:
        last = found[-1] if found else None
        if last and op.kind == "write" == last.kind and op.path == last.path and last.at + len(last.data) == op.at:
            found[-1] = Op("write", op.path, at=last.at, data=last.data + op.data, who=last.who)
        else:
            found.append(op)
    return found
