"""Damage is found before anything is used: the newest good checkpoint is taken, the damaged one set aside."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.jobs import holds, on_ranks, write
from trainer.checkpoint import Checkpointer, CheckpointMismatch
from trainer.checkpoint.disk import store
from trainer.checkpoint.disk.restore import Bad, Tiers, load, restore
from trainer.checkpoint.errors import CheckpointError, Damaged, NoUsableCheckpoint, Unreadable
from trainer.checkpoint.format.boxes import whole
from trainer.checkpoint.group import Ranks
from trainer.rundir.files.durable import DISK
from trainer.rundir.layout import committed_steps

SHARD = "rank0.safetensors"


def _restored(folder: Path, mode: str = "auto") -> tuple[int | None, list[Bad]]:
    bad: list[Bad] = []
    loaded = restore(Tiers(folder), mode, Ranks(), DISK, bad.append)
    return (loaded.manifest.step if loaded else None), bad


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", [SHARD, "manifest.json"])
def test_every_flipped_byte_is_detected(tmp_path: Path, name: str, stride: int) -> None:
    """Any one byte of a shard or of the manifest, flipped: the checkpoint does not verify and does not load. Without
    `--all` it is every seventh byte."""
    write(tmp_path, 1)
    path = tmp_path / "step-00000001"
    store.verify(path)
    original = (path / name).read_bytes()
    for number, at in enumerate(range(0, len(original), stride)):
        changed = bytearray(original)
        changed[at] ^= 1 << (number % 8)
        (path / name).write_bytes(changed)
        with pytest.raises(CheckpointError):
            store.verify(path)
        if number % 16 == 0:
            with pytest.raises((Damaged, Unreadable)):
                load(path, 0)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _link(path: Path) -> None:
    twin = path.parent.parent / f"twin-of-{path.name}"
    path.rename(twin)
    path.symlink_to(twin)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


DAMAGE = [_cut, _halve, _empty, _zero, _grow, _link, _folder, _pipe, _pickle, Path.unlink]


@pytest.mark.parametrize("name", [SHARD, "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__.strip("_"))
def test_fallback_to_the_next_good_one(tmp_path: Path, damage: Callable[[Path], None], name: str) -> None:
    """However a file is damaged: the older checkpoint is restored, the damaged one is in quarantine with a reason."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    damage(tmp_path / "step-00000002" / name)
    step, bad = _restored(tmp_path)

    assert step == 1
    assert holds(tmp_path, 1)
    assert committed_steps(tmp_path) == [1]
    moved = tmp_path / "quarantine" / "step-00000002-1"
    assert [b.moved_to for b in bad] == [moved]
    assert name in moved.with_name(moved.name + ".txt").read_text()
    assert os.path.lexists(moved / name) or damage is Path.unlink


def test_a_link_in_a_checkpoints_place_is_not_followed(tmp_path: Path) -> None:
    """A folder that is a symbolic link is damage, even one that leads to a good checkpoint; its target stays
    untouched."""
    write(tmp_path / "elsewhere", 2)
    folder = tmp_path / "checkpoints"
    write(folder, 1)
    (folder / "step-00000002").symlink_to(tmp_path / "elsewhere" / "step-00000002")
    step, bad = _restored(folder)

    assert step == 1
    assert "link" in bad[0].reason
    assert holds(tmp_path / "elsewhere", 2)


@pytest.mark.parametrize(
    "name",
    ["step-2", "step-000000002", "step-00000002.tmp", "step-00000002\n", "step-0000000x", "..", "step-٠٠٠٠٠٠٠٢"],
)
def test_other_names_are_no_checkpoints(tmp_path: Path, name: str) -> None:
    """Only the one name that a step has counts."""
    write(tmp_path, 1)
    if name != "..":
        (tmp_path / name).mkdir()

    assert committed_steps(tmp_path) == [1]
    assert _restored(tmp_path) == (1, [])


@pytest.mark.parametrize(
    "text", ["step-00000009", "../../../etc", "/etc/passwd", "", "\0\xff", "x" * 9999, "step-00000001"]
)
def test_latest_is_only_a_hint(tmp_path: Path, text: str) -> None:
    """Whatever `latest` says, the newest good checkpoint is found."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    (tmp_path / "latest").write_text(text)

    assert _restored(tmp_path) == (2, [])


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    """A manifest, digest and all right, that names a file out of its folder is damaged."""
    import xxhash

    write(tmp_path, 1)
    path = tmp_path / "step-00000001" / "manifest.json"
    for name in ("../../secret", "/etc/passwd", "rank1.safetensors"):
        body = path.read_bytes()[:-46].replace(b"rank0.safetensors", name.encode())
        path.write_bytes(body + b',"digest":"%s"}\n' % xxhash.xxh3_128_hexdigest(body).encode())
        with pytest.raises(Damaged, match="not a manifest"):
            store.load_manifest(path.parent)
        write(tmp_path, 1)


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    """What a newer version wrote is passed over, and not taken for damaged."""
    import xxhash

    write(tmp_path, 1)
    write(tmp_path, 2)
    path = tmp_path / "step-00000002" / "manifest.json"
    body = path.read_bytes()[:-46].replace(b'"format":2', b'"format":3')
    path.write_bytes(body + b',"digest":"%s"}\n' % xxhash.xxh3_128_hexdigest(body).encode())
    step, bad = _restored(tmp_path)

    assert step == 1
    assert bad[0].moved_to is None
    assert committed_steps(tmp_path) == [1, 2]


def test_never_a_silent_step_0(tmp_path: Path) -> None:
    """Checkpoints existed and none is good: an error that names them, now and at every later try."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    for step in (1, 2):
        _zero(tmp_path / f"step-0000000{step}" / SHARD)
    for _ in range(2):
        with pytest.raises(NoUsableCheckpoint, match=r"step-00000001.*step-00000002"):
            _restored(tmp_path)

    assert NoUsableCheckpoint.exit_code == 78


def test_latest_without_any_checkpoint_is_not_step_0(tmp_path: Path) -> None:
    """`latest` outlived the folder that it names: something was lost, and that is said."""
    (tmp_path / "latest").write_text("step-00000040\n")
    with pytest.raises(NoUsableCheckpoint, match="latest"):
        _restored(tmp_path)


def test_a_fresh_folder_is_step_0(tmp_path: Path) -> None:
    """There never was a checkpoint: None, unless one is required."""
    assert _restored(tmp_path / "none") == (None, [])
    with pytest.raises(NoUsableCheckpoint, match="must"):
        _restored(tmp_path / "none", "must")


def test_starting_over_loses_nothing(tmp_path: Path) -> None:
    """resume=never moves all there was aside, whole; a second time beside the first; afterwards it is a fresh
    folder."""
    for number in (1, 2):
        write(tmp_path, 1)
        write(tmp_path, 2)
        assert _restored(tmp_path, "never") == (None, [])
        aside = tmp_path / f"superseded-{number}"
        assert committed_steps(aside) == [1, 2]
        assert holds(aside, 2)
        assert _restored(tmp_path) == (None, [])


def test_starting_over_is_finished_after_a_death(tmp_path: Path) -> None:
    """A start over that died halfway leaves no old checkpoint to resume from."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    (tmp_path / "superseded-1.tmp").mkdir()
    (tmp_path / "step-00000002").rename(tmp_path / "superseded-1.tmp" / "step-00000002")

    assert _restored(tmp_path) == (None, [])
    assert committed_steps(tmp_path / "superseded-1") == [1, 2]


def test_ranks_agree_on_one(tmp_path: Path) -> None:
    """A shard that only one rank reads badly: every rank falls back to the same older step, and rank 0 moves it
    once."""
    for step in (1, 2):
        on_ranks(3, lambda ranks, step=step: write(tmp_path, step, ranks=ranks).error)
    _zero(tmp_path / "step-00000002" / "rank2.safetensors")
    loaded = on_ranks(3, lambda ranks: restore(Tiers(tmp_path), "auto", ranks, DISK))

    assert [one.manifest.step for one in loaded] == [1, 1, 1]
    assert [p.name for p in (tmp_path / "quarantine").iterdir() if p.is_dir()] == ["step-00000002-1"]


def test_ranks_that_cannot_read_do_not_condemn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that one rank may not read is passed over by all, and stays where it is."""
    for step in (1, 2):
        on_ranks(2, lambda ranks, step=step: write(tmp_path, step, ranks=ranks).error)
    genuine = load

    def refused(path: Path, rank: int, *rest: object, **more: object) -> object:
        if rank == 1 and path.name == "step-00000002":
            raise Unreadable("manifest.json cannot be opened: Permission denied")
        return genuine(path, rank, *rest, **more)

    monkeypatch.setattr("trainer.checkpoint.disk.restore.load", refused)
    loaded = on_ranks(2, lambda ranks: restore(Tiers(tmp_path), "auto", ranks, DISK))

    assert [one.manifest.step for one in loaded] == [1, 1]
    assert committed_steps(tmp_path) == [1, 2]


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    """Pickles in every file of a checkpoint: they are damage, and none of them runs."""
    proof = tmp_path / "proof"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return os.system, (f"touch {proof}",)

    folder = tmp_path / "checkpoints"
    write(folder, 1)
    write(folder, 2)
    for file in (folder / "step-00000002").iterdir():
        file.write_bytes(pickle.dumps(Evil()))
    (folder / "latest").write_bytes(pickle.dumps(Evil()))

    assert _restored(folder)[0] == 1
    assert not proof.exists()


@dataclasses.dataclass
class _Settings:
    rate: float = 1.0


def test_a_class_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataclass in the state that its program can no longer make: a mismatch, and every checkpoint stays."""
    ckpt = Checkpointer(extra={"settings": _Settings()}, directory=tmp_path, every=1)
    for step in range(ckpt.restore(), 3):
        ckpt.step(step + 1)
    grown = dataclasses.make_dataclass(
        "_Settings",
        [("rate", float), ("key", str, dataclasses.field(default_factory=lambda: os.environ["NO_SUCH_KEY"]))],
    )
    grown.__module__ = __name__
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "_Settings", grown)
        with pytest.raises(
            CheckpointMismatch, match=r"settings\), and it cannot be made here: KeyError\('NO_SUCH_KEY'\)"
        ):
            Checkpointer(directory=tmp_path).restore()
    assert committed_steps(tmp_path) == [1, 2, 3]
    assert not (tmp_path / "quarantine").exists()
    assert Checkpointer(directory=tmp_path).restore() == 3


def test_a_tensor_that_cannot_be_placed_is_no_damage(tmp_path: Path) -> None:
    """torch refuses to make a part's tensor of what was read (of a mesh, say): each checkpoint is left where it is."""

    class Refused:
        box = whole((3,))

        def made(self, local: torch.Tensor) -> torch.Tensor:
            raise ValueError("no such mesh")

    ckpt = Checkpointer(extra={"it": torch.ones(3)}, directory=tmp_path, every=1)
    for step in range(ckpt.restore(), 2):
        ckpt.step(step + 1)
    bad: list[Bad] = []
    tiers = Tiers(tmp_path, places=lambda manifest: {"extra/it": Refused()})
    with pytest.raises(NoUsableCheckpoint):
        restore(tiers, "auto", Ranks(), DISK, bad.append)
    assert [(one.reason, one.moved_to) for one in bad] == [
        ("extra/it cannot be made here: ValueError('no such mesh')", None)
    ] * 2
    assert committed_steps(tmp_path) == [1, 2]
