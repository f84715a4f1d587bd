"""Where options come from, beside the command line: torchrun's words and variables, those of engines that start nodes,
the environment, supervise.toml."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supervisor.commands.cli import run as call
from tests.support.supervised import Run
from trainer.rundir.layout import RunDir


@pytest.mark.parametrize(
    ("variables", "options", "says"),
    [
        ({"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, [], "SLURM_STEP_NUM_TASKS"),
        ({"SLURM_JOB_NUM_NODES": "2"}, [], "SLURM_JOB_NUM_NODES"),
        ({"PET_NNODES": "1:4", "PET_MASTER_ADDR": "a"}, ["-d"], "leave out --detach"),
        ({"SUPERVISE_NNODES": "2", "SUPERVISE_NODE_RANK": "0"}, ["--spawns"], "--spawns is for"),
        ({}, ["--nnodes", "2", "--master-addr", "a.invalid", "--node-wait", "0s"], "no address of it is known"),
        ({}, ["--nnodes", "2", "--node-rank", "0", "--local-addr", "192.0.2.7"], "no interface here has it"),
        ({}, ["--nnodes", "2"], "--rdzv-endpoint"),
        ({}, ["--nnodes", "1.5"], "--nnodes 1.5"),
        ({}, ["--node-rank", "first"], "neither a number"),
        ({}, ["--nnodes", "2", "--lease", "0s"], "between 300ms and 1m"),
        ({}, ["--nnodes", "2", "--rdzv-endpoint", "a:b"], "write HOST or HOST:PORT"),
    ],
)
def test_several_nodes_are_refused(run: Run, variables: dict[str, str], options: list[str], says: str) -> None:
    """`srun -N2 supervise launch` would be two trainings that both say they had finished."""
    run.script("")
    run.start(*options, "script.py", **variables)
    assert run.wait() == 2
    assert says in (run.folder / "stderr").read_text()
    assert not run.dir.path.exists()


def test_one_node_of_several(run: Run) -> None:
    """--nnodes 1 is stronger than what any launcher's variables say; a NNODES that is no number is not torchrun's."""
    run.script("")
    assert run.launch("--nnodes", "1", "script.py", SLURM_JOB_NUM_NODES="2", NNODES="several") == 0


def test_a_node_of_an_engine_is_not_detached(run: Run) -> None:
    """A pod or a step of srun ends with the command that it was started for, and would take the supervisor with it."""
    run.script("")
    place = {"PET_NNODES": "2", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "127.0.0.1"}
    assert run.launch("-d", "--run-dir", "run", "script.py", **place) == 2
    assert "leave out --detach" in (run.folder / "stderr").read_text()
    assert not run.dir.run_json.exists()


def test_torchruns_own_command(run: Run) -> None:
    """The command that somebody has is taken as it is; what means nothing here is named."""
    script = run.script("import os, sys\nopen('seen' + os.environ['RANK'], 'w').write(' '.join(sys.argv[1:]))")
    words = "torchrun --standalone --nproc_per_node=2 --rdzv-backend c10d --rdzv_endpoint=localhost:0 --max_restarts 0"
    assert run.launch(*words.split(), script, "--lr", "1") == 0
    assert [(run.folder / f"seen{rank}").read_text() for rank in range(2)] == ["--lr 1"] * 2
    told = (run.folder / "stderr").read_text()
    assert "--rdzv-backend is ignored" in told and "--rdzv-endpoint is ignored" in told


def test_torchruns_variables(run: Run) -> None:
    """Its variables are defaults, as they are for torchrun: anybody's own words are stronger. A value without a meaning
    is refused by its variable's name."""
    run.script("import os\nopen('world', 'w').write(os.environ['WORLD_SIZE'])")
    given = {"PET_NPROC_PER_NODE": "2", "PET_MAX_RESTARTS": "7"}
    assert run.launch("script.py", **given) == 0
    spec = json.loads(run.dir.run_json.read_bytes())
    assert (spec["nproc"], spec["max_restarts"]) == (2, 7)
    assert (run.folder / "world").read_text() == "2"

    (run.folder / "supervise.toml").write_text("max-restarts = 3\n")
    assert run.launch("--run-dir", "other", "--nproc", "1", "script.py", **given) == 0
    spec = json.loads(RunDir(run.folder / "other").run_json.read_bytes())
    assert (spec["nproc"], spec["max_restarts"]) == (1, 3)

    assert run.launch("--run-dir", "third", "script.py", PET_NPROC_PER_NODE="two") == 2
    assert "PET_NPROC_PER_NODE: 'two' is neither a number" in (run.folder / "stderr").read_text()


def test_config_file(run: Run) -> None:
    """supervise.toml gives options; the environment and flags stand above it; an unknown key names the nearest."""
    run.script("import os\nopen('world', 'w').write(os.environ['WORLD_SIZE'])")
    config = run.folder / "supervise.toml"
    config.write_text('nproc = 2\nmax-restarts = 7\ngrace = "9s"\n')
    assert run.launch("script.py") == 0
    spec = json.loads(run.dir.run_json.read_bytes())
    assert (spec["nproc"], spec["max_restarts"], spec["grace"]) == (2, 7, 9.0)
    assert (run.folder / "world").read_text() == "2"

    def resolved(*flags: str, **env: str) -> int:
        other = Run(run.folder)
        other.dir = RunDir(run.folder / f"other{len(flags)}")
        assert other.launch("--run-dir", other.dir.path.name, *flags, "script.py", **env) == 0
        value: int = json.loads(other.dir.run_json.read_bytes())["max_restarts"]
        return value

    assert resolved(SUPERVISE_MAX_RESTARTS="5") == 5
    assert resolved("--max-restarts", "4", SUPERVISE_MAX_RESTARTS="5") == 4

    config.write_text("max_restart = 7\n")
    assert "did you mean 'max-restarts'" in run.cli("launch", "script.py", check=2).stderr
    config.write_text("nproc = \n")
    assert "is not TOML" in run.cli("launch", "script.py", check=2).stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('grace = "inf"', "supervise.toml: grace: 'inf' is not a duration"),
        ("hang-timeout = 0", "supervise.toml: hang-timeout: '0' is too short"),
        ("max-restarts = -1", "supervise.toml: max-restarts: -1 is not in the range"),
        ('standby = "perhaps"', "supervise.toml: standby: 'perhaps' is not"),
        ('inject = "kil:rank=0"', "supervise.toml: inject: fault 'kil:rank=0': unknown fault 'kil'"),
        ("notify = 3", "supervise.toml: notify is a table"),
        ('inject = "kill:rank=0@step=3"', None),
    ],
)
def test_a_wrong_setting_is_told_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, says: str | None
) -> None:
    """Nobody has typed an option; and a word in place of a list is a list of one."""
    monkeypatch.chdir(tmp_path)
    Path("supervise.toml").write_text(text)
    assert call(["policy"]) == (0 if says is None else 2)
    assert says is None or (says in (err := capsys.readouterr().err) and "--" not in err)
    assert call(["policy", "--config", "nowhere.toml"]) == 2
    Path("supervise.toml").unlink()
    # What is the environment's is told as it was.
    monkeypatch.setenv("SUPERVISE_GRACE", "inf")
    assert call(["policy"]) == 2 and "'--grace'" in capsys.readouterr().err


def test_unknown_environment_is_told(run: Run) -> None:
    """A misspelt SUPERVISE_ variable is not silently the default. What a rank of another run has is none of those."""
    run.script("pass")
    run.start("script.py", SUPERVISE_NPROCS="2", SUPERVISE_GROUP="none", SUPERVISE_STORE="none")
    assert run.wait() == 0

    said = (run.folder / "stderr").read_text()
    assert "did you mean 'nproc'" in said and said.count("is no option of launch") == 1
