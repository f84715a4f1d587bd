"""A program of LightningCLI, with all of its defaults: it saves its configuration beside its logs, and refuses to begin
where one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.frameworks import IMPORTED, needs
from tests.support.programs.lightning_module import LIT
from tests.support.supervised import Run

PROGRAM = (
    LIT
    + """
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
class Ours(Lit):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 4)), batch_size=1)
class Saves(ModelCheckpoint):
    def __init__(self):
        super().__init__(every_n_train_steps=10, save_top_k=-1)
if __name__ == "__main__":
    LightningCLI(Ours)
"""
)
ARGUMENTS = """fit --trainer.max_steps=30 --trainer.accelerator=cpu --trainer.devices=2 --trainer.strategy=ddp
--trainer.enable_progress_bar=false --trainer.logger=CSVLogger --trainer.logger.save_dir=logs
--trainer.callbacks+=__main__.Saves""".split()


@pytest.fixture
def program(run: Run) -> str:
    needs("lightning", "jsonargparse", "docstring_parser")
    run.modules = (*IMPORTED["lightning"], "lightning.pytorch.cli")
    return run.script(PROGRAM)


def configurations(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("config.yaml"))


def test_it_goes_on(run: Run, program: str) -> None:
    """Killed before its first save, and after it, it goes on in `version_0`: the configuration there is its own."""
    kills = "--inject", "kill:rank=1@step=5", "--inject", "kill:rank=0@step=14"
    assert run.launch("--nproc", "2", *kills, program, *ARGUMENTS) == 0, run.warnings()
    assert [event["from_step"] for event in run.events("first_step")] == [0, 0, 10]
    assert configurations(run.folder) == ["logs/lightning_logs/version_0/config.yaml"]


def test_the_configuration_of_another_run(run: Run, program: str) -> None:
    """It is not written over, by no attempt: the run ends as the program would."""
    there = run.folder / "config.yaml"
    there.write_text("# of somebody else\n")
    assert run.launch("--nproc", "2", program, *ARGUMENTS, "--trainer.logger=false") != 0
    assert len(run.events("attempt_started")) > 1
    assert there.read_text() == "# of somebody else\n"
    assert not run.events("first_step")
