"""The command line's contract: what is wrong gets one clear line and its code, help is instant, JSON has its keys."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import BashComplete

from supervisor.commands import completion, help, man
from supervisor.commands.cli import ALIASES, COMMANDS, supervise
from supervisor.commands.cli import run as call
from supervisor.commands.console import unused_faults
from supervisor.commands.launch import command as launch
from supervisor.run.folder.lock import RunLock
from tests.support.runs_on_disk import Writer
from tests.support.supervised import SUPERVISE, Run, until
from trainer.rundir.codes import ExitCode
from trainer.rundir.layout import RunDir
from trainer.rundir.records import faults

# Frozen: tests outside the project and people's scripts use these names.
COMMAND_NAMES = (
    "launch resume ls status report events tail watch web attach stacks stop inject chaos policy ckpt doctor "
    "submit service gc rm completion man"
)
LAUNCH_OPTIONS = (
    "--adapter --backoff --config --detach --grace --hang-timeout --inject --inject-failure --json "
    "--keep-warm --lease --local-addr --local-dir --log-restarts --max-restarts --metrics-file --module --name "
    "--nnodes --no-log-restarts --no-plain-saves --no-progress-limit --no-spawns --no-standby --node-rank --node-wait "
    "--nproc --park --plain-saves --policy --quiet --rdzv-endpoint --resume --resume-args --run-dir --spawns "
    "--standby --startup-timeout --window"
)
TORCHRUN_OPTIONS = (
    "--local-ranks-filter --log-dir --log-line-prefix-template --master-addr --master-port "
    "--monitor-interval --no-python --nproc-per-node --rdzv-backend --rdzv-conf "
    "--rdzv-id --redirects --role --standalone --start-method --tee"
)
"""Taken, and not shown."""


def test_commands_are_those_of_the_contract() -> None:
    """No command comes or goes unnoticed."""
    assert sorted(COMMANDS) == sorted(COMMAND_NAMES.split())
    assert ALIASES == {"inject-failure": "inject", "run": "launch", "logs": "tail", "ps": "ls", "top": "watch"}


def test_launch_options_are_those_of_the_contract() -> None:
    """No option comes or goes unnoticed."""
    for hidden, told in (False, LAUNCH_OPTIONS), (True, TORCHRUN_OPTIONS):
        options = [p for p in launch.params if getattr(p, "hidden", False) is hidden]
        names = [n for p in options for n in (*p.opts, *p.secondary_opts) if n.startswith("--")]
        assert sorted(names) == told.split()


@pytest.mark.parametrize("command", COMMAND_NAMES.split())
def test_every_command_has_help(command: str) -> None:
    """--help says what a command does, and exits with 0."""
    done = subprocess.run([SUPERVISE, command, "--help"], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("Usage: supervise")


def test_help_loads_little() -> None:
    """Help must be instant: none of the slow libraries is imported for it."""
    code = (
        "import sys\nfrom _supervisor.commands.cli import run\nrun(['--help'])\n"
        "slow = {'torch', 'rich', 'structlog', 'psutil', 'numpy', 'filelock'} & set(sys.modules)\n"
        "sys.exit(str(slow) if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_launch_loads_little(tmp_path: Path) -> None:
    """Launch to the first step counts: what no run needs before that is not imported."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "import _supervisor.commands.cli, _supervisor.commands.launch, _supervisor.loop.driver\n"
        "from _supervisor.run.events import EventLog\nfrom _supervise.rundir.layout import RunDir\n"
        "log = EventLog(RunDir(Path(sys.argv[1])), 'demo')\nlog.emit('run_started')\nlog.emit('attempt_started')\n"
        "late = {'structlog', 'rich.text', 'asyncio', 'ssl', '_supervisor.commands.several', '_supervisor.nodes.hub'}\n"
        "late |= {'torch', 'numpy', 'jinja2', 'starlette', 'prometheus_client', 'pynvml'}\n"
        "early = late & set(sys.modules)\n"
        "log.emit('first_step')\nassert 'structlog' in sys.modules\n"
        "sys.exit(str(early) if early else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["lunch"], 2, "did you mean 'launch'"),
        (["train"], 2, "did you mean 'launch'"),
        (["launch", "--gpus", "2", "script.py"], 2, "no option '--gpus'; did you mean '--nproc'?; see"),
        (["launch", "--verbose", "script.py"], 2, "no option '--verbose'; see"),
        (["launch", "--steps", "8"], 2, "the built-in trainer's after --"),
        (["launch", "--max-restarts", "2", "--max_restarts", "3", "script.py"], 2, "as 2 and as 3; give it once"),
        (["delete"], 2, "did you mean 'rm'"),
        (["launch", "broken.py"], 104, "broken.py:1: SyntaxError"),
        (["launch", "train.sh"], 104, "a script of /bin/bash"),
        (["launch", "-m", "package"], 104, "__main__.py:2: SyntaxError"),
        (["launch", "bash", "train.sh"], 2, "not a Python script"),
        (["launch", "torchrun"], 2, "no script after it"),
        (["inject", "kil"], 2, "did you mean 'kill'"),
        (["inject", "a", "b", "kill"], 2, "not 3 words"),
        (["inject", "kill"], 102, "no run"),
        (["attach"], 102, "no run"),
        (["stacks", "nothing"], 102, "no run"),
        (["rm"], 2, "Missing argument"),
        (["rm", "nothing"], 102, "no run"),
        (["completion", "csh"], 2, "'bash', 'zsh', 'fish'"),
        (["watch", "nothing"], 2, "needs a terminal"),
        (["kill"], 2, "did you mean 'stop --now'"),
        (["nowhere.py"], 2, "no script 'nowhere.py' here"),
        (["launch", "--nproc", "2", "torchrun", "--nproc_per_node", "4", "script.py"], 2, "give it once"),
        (["launch", "--nnodes", "2", "script.py"], 2, "several nodes"),
        (["launch", "torchrun", "--nnodes=1:4", "script.py"], 2, "several nodes"),
        (["launch", "-m", "torch.distributed.run", "--nnodes=2", "script.py"], 2, "several nodes"),
        (["launch", "--no-python", "script.py"], 2, "give the script that"),
        (["launch", "-n", "gpus", "script.py"], 2, "neither a number"),
        (["launch", "python", "-O", "script.py"], 2, "leave out python"),
        (["launch", "python3"], 2, "no script after it"),
        (["launch", "--nproc", "2", "--inject", "kill:rank=2", "script.py"], 2, "the ranks are 0 to 1"),
        (["launch", "--nprc", "2", "script.py"], 2, "--nproc"),
        (["launch", "--nproc", "0", "script.py"], 2, "at least 1"),
        (["launch", "--nproc", "100000", "script.py"], 2, "too many"),
        (["launch", "--nproc", "two", "script.py"], 2, "neither a number"),
        (["launch", "nowhere.py"], 2, "no script 'nowhere.py'"),
        (["launch", "-m", "no_such_module_here"], 2, "no module named"),
        (["launch", "trainer"], 2, "write: -m trainer"),
        (["launch", "."], 2, "is a folder"),
        (["launch", "--grace", "soon", "script.py"], 2, "30s, 5m or 2h"),
        (["launch", "--backoff", "5m:1s", "script.py"], 2, "minimum is above"),
        (["launch", "--inject", "kil:rank=1", "script.py"], 2, "did you mean 'kill'"),
        (["chaos", "--faults", "kil"], 2, "did you mean 'kill'"),
        (["chaos", "--moments", "sav"], 2, "did you mean 'save'"),
        (["chaos", "--faults", ","], 2, "no fault at all"),
        (["chaos", "--matrix", "--count", "3"], 2, "leave --count"),
        (["chaos", "--report", "nowhere/page.html"], 2, "not a folder"),
        (["chaos", "nowhere.py"], 2, "no script 'nowhere.py'"),
        (["chaos", "--cuont", "3"], 2, "--count"),
        (["launch", "--resume", "perhaps", "script.py"], 2, "'auto', 'never', 'must'"),
        (["launch", "--resume", "must", "script.py"], 2, "no checkpoint"),
        (["launch", "--name", "a/b", "script.py"], 2, "letters, digits"),
        (["launch", "--config", "nowhere.toml", "script.py"], 2, "no config file"),
        (["launch", "--run-dir", "script.py", "script.py"], 2, "is a file"),
        (["launch", "--run-dir", "foreign", "script.py"], 2, "no run of supervise"),
        (["launch", "--run-dir", "newer", "script.py"], 2, "schema 99"),
        (["launch", "--run-dir", "garbled", "script.py"], 2, "cannot be read"),
        (["launch", "--run-dir", "/proc/nothing", "script.py"], 2, "cannot be used"),
        (["status", "nothing"], 102, "no run 'nothing'"),
        (["report"], 102, "no run"),
        (["stop", "nothing"], 102, "no run"),
        (["status", "newer"], 2, "schema 99"),
        (["inject", "nothing", "kill"], 102, "no run"),
        (["resume", "nothing"], 102, "no run"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(run: Run, arguments: list[str], code: int, says: str) -> None:
    """What, why, what to do next, on one line of stderr, with the right exit code; nothing on stdout, nothing
    started."""
    run.script("print('never')")
    run.script("def broken(:", "broken.py")
    run.script("#!/bin/bash\nexec python script.py $1", "train.sh")
    (run.folder / "package").mkdir()
    run.script("import sys\nsys.exit(", "package/__main__.py")
    for name, body in [("foreign", None), ("newer", '{"schema": 99, "run": "x"}'), ("garbled", '{"sch')]:
        (run.folder / name).mkdir()
        (run.folder / name / ("run.json" if body else "thesis.tex")).write_text(body or "mine")

    done = run.cli(*arguments, check=code)

    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(run.folder.rglob("attempts")) and not (run.folder / "runs").exists()
    assert (run.folder / "foreign" / "thesis.tex").read_text() == "mine"


def test_fish_gets_what_is_said_about_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Also what stands behind a comma."""
    assert call(["completion", "fish"]) == 0
    assert 'split -m 1 ","' in capsys.readouterr().out


def test_completion_offers_runs_and_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands, options, every run or only those that run, and else files."""
    monkeypatch.chdir(tmp_path)
    for name in ("gpt-0001", "old-0002"):
        Writer(tmp_path / "runs" / name, name)
    shell = BashComplete(supervise, {}, "supervise", completion.VARIABLE)

    def offered(*words: str) -> list[tuple[str, str]]:
        return [(item.type, item.value) for item in shell.get_completions([*words[:-1]], words[-1])]

    assert offered("sta") == [("plain", "status"), ("plain", "stacks")]
    assert offered("status", "g") == [("plain", "gpt-0001")]
    with RunLock(RunDir(tmp_path / "runs" / "old-0002")):
        assert offered("stop", "") == [("plain", "old-0002")]
    assert offered("stop", "x") == [("dir", "x")]
    assert offered("launch", "--max") == [("plain", "--max-restarts")]
    # What torchrun's spellings say, and refuse, is not for a command that is being typed.
    assert offered("launch", "--no-python", "--tee", "3", "tr") == [("file", "tr")]


def test_manual_page_has_every_option() -> None:
    """The page is made of the commands as they are: each command and each option of each is in it."""
    text = "\n".join(man.page(supervise)).replace("\\", "")
    assert {name for name in COMMANDS if f".SS supervise {name}" not in text} == set()
    names = [n for p in launch.params if isinstance(p, click.Option) and not p.hidden for n in p.opts]
    assert [name for name in names if name not in text] == []
    told = {int(code) for code in ExitCode} - {ExitCode.NEVER_RESTART}
    assert {code for code in told if f"fB{code}fR" not in text} == set()


def test_help_has_sections_and_examples() -> None:
    """Every command has an example, every option of launch a section, and no example is wider than a terminal."""
    assert [name for name in COMMANDS if not supervise.get_command(click.Context(supervise), name).epilog] == []
    sections = help.SECTIONS["launch"].values()
    options = [str(p.name) for p in launch.params if isinstance(p, click.Option) and not p.hidden]
    assert [name for name in options if not any(name in section for section in sections)] == []
    assert [line for text in help.EXAMPLES.values() for line in text.splitlines() if len(line.strip()) > 76] == []


@pytest.mark.parametrize(("given", "said"), [((), 0), (("version",), 0), (("help", "ckpt"), 0), (("ckpt",), 0)])
def test_help_is_text(run: Run, given: tuple[str, ...], said: int) -> None:
    """On stdout, with its lines."""
    done = run.cli(*given, check=said)
    assert done.stderr == "" and "\\x0a" not in done.stdout
    assert done.stdout.startswith("supervise, version" if "version" in given else "Usage: supervise")


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


def test_unknown_environment_is_told(run: Run) -> None:
    """A misspelt SUPERVISE_ variable is not silently the default. What a rank of another run has is none of those."""
    run.script("pass")
    run.start("script.py", SUPERVISE_NPROCS="2", SUPERVISE_GROUP="none", SUPERVISE_STORE="none")
    assert run.wait() == 0

    said = (run.folder / "stderr").read_text()
    assert "did you mean 'nproc'" in said and said.count("is no option of launch") == 1


def test_json_of_a_run(run: Run) -> None:
    """status, report and ls give one JSON document each, with the keys of the contract."""
    run.script("pass")
    assert run.launch("--json", "script.py") == 0

    on_stdout = json.loads((run.folder / "stdout").read_text())
    status = json.loads(run.cli("status", "run", "--json").stdout)
    report = json.loads(run.cli("report", "run", "--json").stdout)
    assert on_stdout["state"] == status["state"] == report["state"] == "finished"
    assert set(status) >= set(
        "schema run run_dir state exit_code attempt restarts supervisor_pid launcher_pid workers standby snapshot "
        "checkpoint last_failure budget".split()
    )
    assert set(report) >= set("schema run state wall_s goodput lost_steps attempts ledger recover_s".split())
    assert set(report["attempts"][0]) >= set(
        "attempt from_step to_step cause rank signal reason lost_steps detect_s recover_s".split()
    )
    names = "productive redone detect stop launch restore first_step stall standby backoff stopped other".split()
    assert set(report["ledger"]) == {f"{name}_s" for name in names}
    assert sum(report["ledger"].values()) == pytest.approx(report["wall_s"], abs=1e-3)
    assert set(report["recover_s"]) == {"p50", "p95", "max"}
    run.cli("status", "run", "--exit-code")


def test_running_run_in_status(run: Run) -> None:
    """While it runs, status names the processes, and --exit-code says 101."""
    run.script("import time, torch\no = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)\n"
               "while True:\n    o.step()\n    time.sleep(0.05)")  # fmt: skip
    process = run.start("--nproc", "2", "script.py")

    def trains() -> dict[str, Any] | None:
        if not run.dir.run_json.exists():
            return None
        status: dict[str, Any] = json.loads(run.cli("status", "run", "--json", "--exit-code", check=101).stdout)
        return status if [w["phase"] for w in status["workers"]] == ["train", "train"] else None

    status = until(trains)
    run.cli("stop", "run", "--now")

    assert status["state"] == "running" and status["supervisor_pid"] == process.pid
    assert [w["rank"] for w in status["workers"]] == [0, 1]
    assert all(w["step"] >= 1 and w["pid"] > 0 and w["beat_age_s"] < 60 for w in status["workers"])
    assert (status["lr"], status["loss"], status["total"], status["eta_s"]) == (0.1, None, None, None)
    assert run.wait() == 103


def test_torn_events_are_mended(run: Run) -> None:
    """A torn last line of events.jsonl is cut off by the next supervisor; readers and numbering go on."""
    run.script("import sys, os; sys.exit(0 if os.path.exists('ok') else 78)")
    assert run.launch("script.py") == 104
    whole = run.events()
    with run.dir.events.open("ab") as file:
        file.write(b'{"ts":"2026-11-24T0')
    assert json.loads(run.cli("status", "run", "--json").stdout)["exit_code"] == 104

    Path(run.folder / "ok").touch()
    assert run.launch() == 0

    events = run.events()
    assert events[: len(whole)] == whole
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert all(json.loads(line) for line in run.dir.events.read_bytes().splitlines())


def test_what_stands_in_the_way_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where a folder is needed, and the help of the command whose option has no value."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    (tmp_path / "train.py").touch()
    assert call(["launch", "train.py"]) == ExitCode.USAGE
    assert f"{tmp_path}/runs is a file" in capsys.readouterr().err
    assert call(["launch", "--nproc"]) == ExitCode.USAGE
    assert capsys.readouterr().err.endswith("see: supervise launch --help\n")


def test_faults_that_never_struck(tmp_path: Path) -> None:
    """They are told at the end: a rank or a step that there was not."""
    for text in ("kill:rank=7", "kill:rank=0@step=5", "stop:rank=0@step=99"):
        faults.arm(tmp_path / "faults", faults.parse_fault(text))
    struck = faults.armed(tmp_path / "faults")[1]
    assert faults.claim(tmp_path / "faults", struck, 0, 0, 5)
    assert unused_faults(RunDir(tmp_path)) == ["kill:rank=7", "stop:rank=0@step=99"]
