"""A file that makes no sense to the loader a script reads it with is named, whichever loader that is."""

from __future__ import annotations

import gc
import gzip
import json
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.support.supervised import Run
from trainer.rank.journal.torn import file_of

np = pytest.importorskip("numpy")
STATE = {"weight": torch.zeros(1000)}


def _by_with(path: Path) -> object:
    with path.open("rb") as anything:
        return pickle.load(anything)


def _unnamed(path: Path) -> object:
    checkpoint = str(path)
    return pickle.load(open(checkpoint, "rb"))  # noqa: PTH123 (as scripts do)


def _wrapped(path: Path) -> object:
    try:
        return torch.load(path)
    except RuntimeError as error:
        raise OSError("Unable to load weights") from error


def _json(path: Path) -> object:
    with path.open() as file:
        return json.load(file)


def _gzip(path: Path) -> object:
    with gzip.open(path) as file:
        return file.read()


LOADERS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "torch.load": (lambda path: torch.save(STATE, path), torch.load),
    "torch.load of an open file": (lambda path: torch.save(STATE, path), lambda path: torch.load(path.open("rb"))),
    "torch.load, the old format": (
        lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
        lambda path: torch.load(path),
    ),
    "wrapped": (lambda path: torch.save(STATE, path), _wrapped),
    "safetensors": (lambda path: safetensors.torch.save_file(STATE, path), safetensors.torch.load_file),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(list(range(1000)))), _by_with),
    "pickle, unnamed": (lambda path: path.write_bytes(pickle.dumps(list(range(1000)))), _unnamed),
    "json": (lambda path: path.write_text(json.dumps(list(range(1000)))), _json),
    "numpy": (lambda path: np.savez(path.open("wb"), a=np.zeros(1000)), lambda path: np.load(path)["a"]),
    "gzip": (lambda path: path.write_bytes(gzip.compress(bytes(range(256)) * 9)), _gzip),
    "zip": (lambda path: zipfile.ZipFile(path, "w").writestr("a", b"x" * 1000), zipfile.ZipFile),
    "tar": (lambda path: tarfile.open(path, "w:gz").close(), tarfile.open),
}


@pytest.fixture(autouse=True)
def _carelessly_open() -> Iterator[None]:
    """Loaders that fail leave files open: that is theirs, and no failure of the next test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOADERS)
def test_the_file_is_named(name: str, tmp_path: Path) -> None:
    """Cut to half its length, as a kill in the middle of a save leaves it."""
    save, load = LOADERS[name]
    path = tmp_path / "some checkpoint"
    save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Exception) as raised:
        load(path)
    assert file_of(raised.value) == str(path)


@pytest.mark.parametrize("error", [ValueError("no such model"), FileNotFoundError(2, "no such file"), KeyError("m")])
def test_other_errors_name_no_file(error: Exception) -> None:
    """What is not about a file's content is blamed on none, whatever the variables hold."""
    file = __file__

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        fail()
    assert file_of(raised.value) is None and Path(file).exists()


def test_a_refused_object_is_no_damage(tmp_path: Path) -> None:
    """torch.load reads no object of a class that it does not know, and the file is whole."""
    torch.save({"data": tmp_path}, path := tmp_path / "checkpoint")
    with pytest.raises(pickle.UnpicklingError) as raised:
        torch.load(path, weights_only=True)
    assert file_of(raised.value) is None


def test_the_reason_names_it(run: Run) -> None:
    """The last word of a run that cannot start from its own checkpoint is which file that is."""
    (run.folder / "ck00060.pt").write_bytes(b"PK\x03\x04 half a checkpoint")
    assert run.launch(run.script("import torch\ntorch.load('ck00060.pt')")) == 104
    assert str(run.folder / "ck00060.pt") in run.events("run_ended")[0]["reason"]
