"""The wrapped functions of the libraries that write checkpoints, by module."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from .targets import Argument
from .wrapping import Writer, folder, load, replace, save, written

_ARCHIVE = b"PK\3\4"
"""The beginning of a file of torch.save."""
_TENSORS = "safetensors"


def _torch(module: ModuleType) -> None:
    replace(module, "save", save(Writer(module.save, Argument(1, "f")), "torch.save", Argument(0, "obj")), "torch")
    replace(module, "load", load(module.load, Argument(0, "f")), "torch")
    _archives()


def _archives() -> None:
    """Some save into memory, and write the bytes to several files (Ultralytics)."""
    real = Path.write_bytes
    written = save(Writer(lambda path, data: real(Path(path), data), Argument(0)), "write_bytes")

    @functools.wraps(real)
    def write_bytes(self: Path, data: Any) -> int:
        archive = isinstance(data, bytes | bytearray) and data[: len(_ARCHIVE)] == _ARCHIVE
        return written(self, data) if archive else real(self, data)

    Path.write_bytes = write_bytes  # type: ignore[method-assign]


def _safetensors(module: ModuleType) -> None:
    """Its save and load functions, for torch, numpy and the others, all call these two."""
    write, read = module.serialize_file, module.safe_open
    users = [f"{_TENSORS}.{name}" for name in ("torch", "numpy", "flax", "tensorflow", "mlx", "paddle")]
    replace(
        module,
        "serialize_file",
        save(Writer(write, Argument(1, "filename"), lambda path: write({}, path)), "safetensors"),
        *users,
    )
    opened = load(read, Argument(0, "filename"))
    replace(module, "safe_open", _Opener("safe_open", (), {"opened": staticmethod(opened), "real": read}), *users)


class _Opener(type):
    """Replaces a class that cannot be derived from. A call returns an instance of the real class."""

    opened: Any
    real: type

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.opened(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.real)


class _Ending(Argument):
    """A path argument. The function adds an ending if the path lacks it."""

    def __init__(self, ending: str, index: int, *names: str) -> None:
        super().__init__(index, *names)
        self._ending = ending

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        where = super().__call__(args, kwargs)
        if not isinstance(where, str | os.PathLike) or not isinstance(path := os.fspath(where), str):
            return where
        return path if path.endswith(self._ending) else path + self._ending


def _numpy(module: ModuleType) -> None:
    """Arrays are mostly data and results. They are written whole, but do not count as saves of progress."""
    packages = "numpy", "numpy.lib", "numpy.lib.npyio"
    for name, ending in (("save", ".npy"), ("savez", ".npz"), ("savez_compressed", ".npz")):
        replace(module, name, written(Writer(getattr(module, name), _Ending(ending, 0, "file"))), *packages)


def _lightning(module: ModuleType) -> None:
    """Lightning writes into the folder for temporary files, then moves the file. To another file system, it copies."""
    wrapper = save(Writer(module._atomic_save, Argument(1, "filepath")), "lightning", Argument(0, "checkpoint"))
    replace(module, "_atomic_save", wrapper)


def _trainer(module: ModuleType) -> None:
    def place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, int]:
        trainer, trial = args[0], args[2] if len(args) > 2 else kwargs.get("trial")
        parent = trainer._get_output_dir(trial=trial)
        return os.path.join(parent, f"checkpoint-{trainer.state.global_step}"), trainer.args.world_size

    trainer = module.Trainer
    trainer._save_checkpoint = folder(trainer._save_checkpoint, "transformers.Trainer", place)


def _accelerator(module: ModuleType) -> None:
    def place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, int]:
        self, settings = args[0], args[0].project_configuration
        if settings.automatic_checkpoint_naming:
            path = os.path.join(self.project_dir, "checkpoints", f"checkpoint_{self.save_iteration}")
            return path, self.num_processes
        # A script may let one rank alone save, if nothing in it waits for the others.
        together = "FSDP" in str(self.distributed_type) or "DEEPSPEED" in str(self.distributed_type)
        where = args[1] if len(args) > 1 else kwargs["output_dir"]
        return os.path.expanduser(where), self.num_processes if together else 1

    accelerator = module.Accelerator
    accelerator.save_state = folder(accelerator.save_state, "accelerate", place)


def _json(*names: str) -> Any:
    """Wraps methods of these classes that write themselves to a path as JSON."""

    def wrap(module: ModuleType) -> None:
        found = {(getattr(module, owner, None), method) for owner, _, method in (name.partition(".") for name in names)}
        for kind, method in found:
            if function := getattr(kind, method, None):
                setattr(kind, method, written(Writer(function, Argument(1, "json_path", "json_file_path"))))

    return wrap


WRAPPED = {
    "torch.serialization": _torch,
    _TENSORS: _safetensors,
    "numpy.lib._npyio_impl": _numpy,
    "lightning.fabric.utilities.cloud_io": _lightning,
    "lightning_fabric.utilities.cloud_io": _lightning,
    "transformers.trainer": _trainer,
    "transformers.trainer_callback": _json("TrainerState.save_to_json"),
    "transformers.configuration_utils": _json("PreTrainedConfig.to_json_file", "PretrainedConfig.to_json_file"),
    "accelerate.accelerator": _accelerator,
}
