"""Files that are written beside and renamed: what they are like afterwards, and where that cannot be done."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import serialize_file

from trainer.rank.journal import wrapping
from trainer.rank.journal.targets import Argument
from trainer.rank.journal.wrapping import Writer, save

TAG = "beside-test.0"


class Listener:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.torn_told: list[str] = []
        self.about: list[Mapping[str, Any]] = []

    def save_begun(self, path: str | None, by: str, about: Mapping[str, Any]) -> None:
        self.about.append(about)

    def save_ended(self, begun: Any, error: BaseException | None) -> None: ...

    def loaded(self, path: str, error: BaseException | None) -> None: ...

    def beside(self, folder: str) -> None: ...

    def staged(self, path: str, still: bool) -> None: ...

    def torn(self, path: str, why: str, begun: Any) -> None:
        self.torn_told.append(why)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Listener:
    listener = Listener()
    monkeypatch.setattr(wrapping, "_listener", listener)
    monkeypatch.setattr(wrapping, "_tag", TAG)
    return listener


def _put(content: bytes, path: str) -> None:
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(content)


put = save(Writer(_put, Argument(1, "path")), "put")
torch_save = save(Writer(torch.save, Argument(1, "f")), "torch.save")


def put_whole(content: bytes, path: Path) -> None:
    """It was written beside, and nothing is left there."""
    put(content, path)
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".saving-")] == []


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_the_file_is_as_it_would_be(tmp_path: Path, heard: Listener) -> None:
    """Mode by the umask, or as it was; owner, attributes, links that lead to it; the same bytes."""
    path, link = tmp_path / "a.pt", tmp_path / "link.pt"
    link.symlink_to("a.pt")
    before = os.umask(0o027)
    try:
        put_whole(b"one", link)
    finally:
        os.umask(before)
    assert link.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o640

    path.chmod(0o664)
    if os.geteuid() == 0:
        os.chown(path, 1000, 1001)
    os.setxattr(path, "user.kept", b"yes")
    old = inode(path)
    put_whole(b"two", path)
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o664 and os.getxattr(path, "user.kept") == b"yes" and found.st_ino != old
    assert (found.st_uid, found.st_gid) == ((1000, 1001) if os.geteuid() == 0 else (os.geteuid(), os.getegid()))

    state = {"w": torch.arange(1000)}
    torch.save(state, tmp_path / "plain.pt")
    plain = (tmp_path / "plain.pt").read_bytes()
    torch_save(state, tmp_path / "plain.pt")
    assert (tmp_path / "plain.pt").read_bytes() == plain
    assert heard.torn_told == [] and all(about["beside"] for about in heard.about)


def test_what_is_no_regular_file(tmp_path: Path, heard: Listener) -> None:
    """A pipe, a device, an open file, a folder, a file that may not be written: as the program asked, without a
    word."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = threading.Thread(target=pipe.read_bytes)
    reader.start()
    put(b"x", str(pipe))
    reader.join()
    put(b"x", "/dev/null")
    with (tmp_path / "open.pt").open("wb") as file:
        torch_save({}, file)
    with pytest.raises(IsADirectoryError):
        put(b"x", tmp_path)
    with pytest.raises(FileNotFoundError):
        put(b"x", tmp_path / "no" / "folder")
    assert stat.S_ISFIFO(pipe.stat().st_mode) and heard.torn_told == []
    assert not any("beside" in about for about in heard.about)


def test_several_names(tmp_path: Path, heard: Listener) -> None:
    """All of them have the new content, and it is said once that a kill would tear it; safetensors replaces one by
    itself."""
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    put_whole(b"old", one)
    os.link(one, other)
    put(b"new", one)
    assert other.read_bytes() == b"new" and inode(one) == inode(other)
    assert len(heard.torn_told) == 1 and "hard links" in heard.torn_told[0]

    plain, ours = tmp_path / "plain.st", tmp_path / "ours.st"
    writer = save(Writer(serialize_file, Argument(1), probe=lambda path: serialize_file({}, path)), "safetensors")
    for path, function in ((plain, serialize_file), (ours, writer)):
        path.write_bytes(b"old")
        os.link(path, f"{path}.link")
        function({}, str(path))
    assert Path(f"{plain}.link").read_bytes() == Path(f"{ours}.link").read_bytes()


def test_many_at_once(tmp_path: Path, heard: Listener) -> None:
    """Threads, and children that were forked, write the same file: it is one of theirs, whole, at every moment."""
    path, size = tmp_path / "a", 1 << 20
    put_whole(bytes(size), path)
    children = []
    for number in (1, 2):
        if (child := os.fork()) == 0:
            wrapping._sleep()
            for _ in range(20):
                put(bytes([number]) * size, path)
            os._exit(0)
        children.append(child)
    threads = [threading.Thread(target=lambda: [put(b"\3" * size, path) for _ in range(20)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        content = path.read_bytes()
        assert len(content) == size and len(set(content[:: size // 16])) == 1
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_save_that_fails(tmp_path: Path, heard: Listener) -> None:
    """What was there is there."""
    path = tmp_path / "a.pt"
    put_whole(b"old", path)
    with pytest.raises(AttributeError):
        torch_save({"no": lambda: 0}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"] and path.read_bytes() == b"old"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_no_room_for_two(small: Path, heard: Listener) -> None:
    """It is written over, as without us, also where that shows only on the way; where it is new, the disk is full."""
    path, mb = small / "a", 1 << 20
    put(bytes(5 * mb), path)
    put(b"\1" * (5 * mb), path)
    assert path.read_bytes() == b"\1" * (5 * mb) and len(heard.torn_told) == 1
    path.write_bytes(bytes(3 * mb))
    put(b"\2" * (6 * mb), path)
    assert path.read_bytes() == b"\2" * (6 * mb) and len(heard.torn_told) == 2
    with pytest.raises(OSError, match="No space left"):
        put(bytes(3 * mb), small / "b")
    assert sorted(p.name for p in small.iterdir()) == ["a"] and path.stat().st_size == 6 * mb


def test_a_file_that_is_a_mount(small: Path, heard: Listener) -> None:
    """No other file can take its name: what was written is copied into it."""
    path = small / "mounted"
    path.write_bytes(b"old")
    (small / "source").write_bytes(b"old")
    subprocess.run(["mount", "--bind", small / "source", path], check=True)
    try:
        put(b"new", path)
        assert path.read_bytes() == (small / "source").read_bytes() == b"new" and len(heard.torn_told) == 1
    finally:
        subprocess.run(["umount", path], check=True)
