"""The command line's contract: what is wrong gets one clear line and its code, help is instant, JSON has its keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from supervisor.commands import completion, help, man
from supervisor.commands.cli import ALIASES, COMMANDS, supervise
from supervisor.commands.cli import run as call
from supervisor.commands.console import unused_faults
from supervisor.commands.folder import Folder
from supervisor.commands.launch import command as launch
from supervisor.errors import Refusal
from supervisor.run import spec as specs
from supervisor.run.folder.lock import RunLock
from supervisor.run.spec import Spec
from tests.support.runs_on_disk import Writer
from tests.support.supervised import Run
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
def test_every_command_has_help(run: Run, command: str) -> None:
    """--help says what a command does, and exits with 0."""
    done = run.cli(command, "--help")

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
        (["launch", "-d", "torchrun", "--nproc-per-node", "2"], 2, "torchrun: no script after it"),
        (["launch", "python", "-m"], 2, "python: no script after it"),
        (["launch", "python", "-m", "torch.distributed.run", "--standalone"], 2, "python: no script after it"),
        (["launch", "-m", "torch.distributed.run"], 2, "torch.distributed.run: no script after it"),
        (["launch", "-m"], 2, "-m: no module after it"),
        (["submit", "--slurm", "--print", "--", "-m"], 2, "-m: no module after it"),
        (["chaos", "-m"], 2, "-m: no module after it"),
        (["launch", "--nproc", "2", "--inject", "kill:rank=2", "script.py"], 2, "the ranks are 0 to 1"),
        (["launch", "--inject", "kill:rank=1"], 2, "rank 0 is the only one"),
        (["launch", "--nprc", "2", "script.py"], 2, "--nproc"),
        (["launch", "--nproc", "0", "script.py"], 2, "at least 1"),
        (["launch", "--nproc", "100000", "script.py"], 2, "too many"),
        (["launch", "--nproc", "two", "script.py"], 2, "neither a number"),
        (["launch", "nowhere.py"], 2, "no script 'nowhere.py'"),
        (["launch", "-m", "no_such_module_here"], 2, "no module named"),
        (["launch", "-m", "__main__"], 2, "no module named '__main__'"),
        (["launch", "--nproc", "9" * 5000, "script.py"], 2, "neither a number"),
        (["stacks", "--top", "100d"], 2, "'100d' is more than 1d"),
        (["doctor", "--jsn"], 2, "no option '--jsn'; did you mean '--json'?; see: supervise doctor --help"),
        (["launch", "trainer"], 2, "write: -m trainer"),
        (["launch", "."], 2, "is a folder"),
        (["launch", "--grace", "soon", "script.py"], 2, "30s, 5m or 2h"),
        (["launch", "--hang-timeout", "0", "script.py"], 2, "the least is 100ms (or auto, off)"),
        (["launch", "--startup-timeout", "0s", "script.py"], 2, "the least is 100ms"),
        (["chaos", "--hang-timeout", "0"], 2, "the least is 100ms"),
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
        (["launch", "--name", "a\n", "script.py"], 2, "letters, digits"),
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


def test_help_is_about_the_command_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also about one of a group; what follows the name is not done."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    for given, usage in (("ckpt", "ls"), "ckpt ls"), (("ckpt",), "ckpt"), (("launch", "train.py"), "launch"):
        assert call(["help", *given]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: supervise {usage} [")
    assert not (tmp_path / "runs").exists()


def test_a_launch_that_does_not_begin_leaves_no_folder(tmp_path: Path) -> None:
    """Whatever stops it. An error after its begin is not taken for one of its folder, which stays."""
    run = RunDir(tmp_path / "runs" / "gpt-7f3a")
    for error, told in (OSError(28, "no room"), Refusal), (ZeroDivisionError(), ZeroDivisionError):
        with pytest.raises(told), Folder() as made:
            made.make(run)
            raise error
        assert not (tmp_path / "runs").exists()
    with pytest.raises(OSError, match="no room"), Folder() as made:
        made.make(run)
        run.events.touch()
        raise OSError(28, "no room")
    assert run.events.exists()


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


@pytest.mark.parametrize(
    ("nproc", "nnodes", "rank", "code"),
    [(2, "", "1", 0), (2, "", "all", 0), (2, "", "2", 2), (2, "1:3", "5", 0), (2, "1:3", "6", 2), (1, "", "3", 0)],
)
def test_a_rank_that_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nproc: int, nnodes: str, rank: str, code: int
) -> None:
    """A fault for it is not armed. But a script that is started once may have started ranks itself."""
    monkeypatch.chdir(tmp_path)
    w = Writer(tmp_path / "runs" / "a-0001", "a-0001")
    specs.save(w.run, Spec("a-0001", "0" * 16, ("train.py",), False, nproc, str(tmp_path), nnodes=nnodes))
    with RunLock(w.run):
        assert call(["inject", f"kill:rank={rank}"]) == code
    assert len(faults.armed(w.run.faults)) == (code == 0)


def test_faults_that_never_struck(tmp_path: Path) -> None:
    """They are told at the end: a rank or a step that there was not."""
    for text in ("kill:rank=7", "kill:rank=0@step=5", "stop:rank=0@step=99"):
        faults.arm(tmp_path / "faults", faults.parse_fault(text))
    struck = faults.armed(tmp_path / "faults")[1]
    assert faults.claim(tmp_path / "faults", struck, 0, 0, 5)
    assert unused_faults(RunDir(tmp_path)) == ["kill:rank=7", "stop:rank=0@step=99"]
