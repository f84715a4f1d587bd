"""How public programs are told to resume: their parsers' own declarations, and the words that they must get, or why
none."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.adapters import kit
from trainer.adapters.choice import choose, edited
from trainer.adapters.generic import Generic
from trainer.adapters.handed.huggingface import known, offered
from trainer.adapters.handed.lightning import LIGHTNING
from trainer.adapters.handed.trainings import Trainings
from trainer.adapters.program import Option, Parser, Program
from trainer.adapters.protocol import Case, Checkpoint
from trainer.rank.hooks.options import _of_argparse

FILE = Checkpoint("/out/checkpoint.pth", 30, resumable=True)
STEP = Checkpoint("/out/model_000020.pt", 20, number=20)
FOLDER = Checkpoint("/out/step_10", 10, "accelerate", 10)
WEIGHTS = Checkpoint("/out/best.pth", 40, resumable=False)
ITERATION = Checkpoint("/save/iter_0000010/mp_rank_00/model_optim_rng.pt", 10, number=10)


def argparsed(build: Callable[[argparse.ArgumentParser], object], after: tuple[str, ...] = (), **known: Any) -> Program:
    parser = argparse.ArgumentParser()
    build(parser)
    options = tuple(_of_argparse(action) for action in parser._actions if action.option_strings)
    return Program((Parser("argparse", options, after),), trained=True, **known)


def str2bool(text: str) -> bool:
    return text == "true"


def option(*names: str, **how: Any) -> Program:
    return argparsed(lambda parser: parser.add_argument(*names, **how))


def options(*given: tuple[tuple[str, ...], dict[str, Any]], **known: Any) -> Program:
    return argparsed(lambda parser: [parser.add_argument(*names, **how) for names, how in given], **known)


def configurator(**globals_: Any) -> Program:
    found = tuple(Option((key,), key, type=type(value).__name__, default=value) for key, value in globals_.items())
    return Program((Parser("configurator", found),), words={"init_from": ("resume", "scratch")}, trained=True)


IMAGENET = option("--resume", default="", type=str, metavar="PATH", help="path to latest checkpoint (default: none)")
OPEN_CLIP = argparsed(
    lambda parser: parser.add_argument("--resume", default=None, help="path to latest checkpoint (default: none)"),
    words={"resume": ("latest",)},
)
DIFFUSERS = option(
    "--resume_from_checkpoint",
    type=str,
    default=None,
    help='Use a path saved by `--checkpointing_steps`, or `"latest"` to automatically select the last available checkpoint.',
)
ACCELERATE = option(
    "--resume_from_checkpoint", type=str, help="If the training should continue from a checkpoint folder."
)
DETECTRON = options(
    (("--resume",), {"action": "store_true", "help": "whether to attempt to resume from the checkpoint directory"}),
    (("--eval-only",), {"action": "store_true"}),
)
MEGATRON = options(
    (("--save",), {}),
    (("--load",), {}),
    (("--finetune",), {"action": "store_true"}),
    (("--no-load-optim",), {"action": "store_true"}),
)
ISAAC = options(
    (("--resume",), {"action": "store_true"}),
    (("--load_run",), {}),
    (("--checkpoint",), {}),
    (("--max_iterations",), {"type": int}),
)
LITGPT = Program(
    (
        Parser(
            "argparse",
            (Option(("--resume",), "resume", type='Union[bool, Literal["auto"], Path]', default=False),),
            ("pretrain",),
        ),
    )
)
NANO = configurator(init_from="scratch", out_dir="out", max_iters=100)
CKPT = Checkpoint("/n/out/ckpt.pt", 60)

TOLD = [
    ("imagenet", IMAGENET, "main.py data", FILE, "main.py --resume=/out/checkpoint.pth data"),
    ("timm", option("--resume", default="", help="Resume full model and optimizer state"), "t.py", FILE, "t.py --resume=/out/checkpoint.pth"),
    ("mae", options((("--resume",), {"default": "", "help": "resume from checkpoint"}), (("--finetune",), {"default": ""})), "p.py", FILE, "p.py --resume=/out/checkpoint.pth"),
    ("openfold", option("--resume_from_ckpt", type=str, default=None), "t.py a b", FILE, "t.py --resume_from_ckpt=/out/checkpoint.pth a b"),
    ("nanochat", option("--resume-from-step", type=int, default=-1), "t.py", STEP, "t.py --resume-from-step=20"),
    ("litgpt", LITGPT, "litgpt.py pretrain pythia --out o", FILE, "litgpt.py pretrain --resume=auto pythia --out o"),
    ("accelerate", ACCELERATE, "nlp.py --checkpointing_steps 10", FOLDER, "nlp.py --resume_from_checkpoint=/out/step_10 --checkpointing_steps 10"),
    ("diffusers", DIFFUSERS, "t.py", FOLDER, "t.py --resume_from_checkpoint=latest"),
    ("open_clip", OPEN_CLIP, "main.py", FILE, "main.py --resume=latest"),
    ("detectron2", DETECTRON, "net.py --x SOLVER.LR 1", FILE, "net.py --resume --x SOLVER.LR 1"),
    ("mmengine", option("--resume", nargs="?", type=str, const="auto", help="If not specified, try to auto resume"), "t.py", FILE, "t.py --resume=/out/checkpoint.pth"),
    ("yolov5", option("--resume", nargs="?", const=True, default=False, help="resume most recent training"), "t.py", FILE, "t.py --resume=/out/checkpoint.pth"),
    ("deepspeed", option("--load_checkpoint_dir", help="The directory of an experiment to continue from."), "t.py", Checkpoint("/exp/bert/global_step30", 30, "deepspeed"), "t.py --load_checkpoint_dir=/exp/bert"),
    ("espnet", option("--resume", type=str2bool, default=False, help="Enable resuming if checkpoint is existing"), "t.py", FILE, "t.py --resume=true"),
    ("type=bool", option("--resume", type=bool, default=False), "t.py", FILE, "t.py --resume=True"),
    ("basicsr", option("--auto_resume", action="store_true"), "t.py", FILE, "t.py --auto_resume"),
    ("short", option("-r", "--resume", default=None), "t.py", FILE, "t.py --resume=/out/checkpoint.pth"),
    ("OpenNMT", option("-train_from", default="", help="If training from a checkpoint, path"), "t.py", FILE, "t.py -train_from=/out/checkpoint.pth"),
    ("megatron", MEGATRON, "p.py --save /save", ITERATION, "p.py --load=/save --save /save"),
    ("nanogpt", NANO, "train.py config/x.py --a=1", CKPT, "train.py config/x.py --a=1 --init_from=resume"),
    ("configurator", configurator(resume=False), "train.py", FILE, "train.py --resume=True"),
    ("hydra", Program((Parser("hydra", (Option(("trainer.resume_from",), type="str"),)),), facts={"hydra.run.dir": "/o/a b"}), "t.py x=1", FILE, "t.py 'hydra.run.dir='/o/a b'' trainer.resume_from=/out/checkpoint.pth x=1"),
    ("isaac", ISAAC, "t.py --max_iterations 100", STEP, "t.py --max_iterations 100 --resume --load_run=out --checkpoint=model_000020.pt --max_iterations=80"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("program", "line", "checkpoint", "expected"), [each[1:] for each in TOLD], ids=[each[0] for each in TOLD]
)
def test_what_it_is_told(program: Program, line: str, checkpoint: Checkpoint, expected: str) -> None:
    """In the value form that its declaration shows, in the place where nothing swallows it; weights are never taken."""
    command = tuple(line.split())
    choice = choose(Case(program, command, (WEIGHTS, checkpoint)))

    assert choice is not None and not choice.plan.refused, choice
    index, words = edited(command, choice.plan)
    text = expected.replace("'hydra.run.dir='/o/a b''", "hydra.run.dir='/o/a_b'")
    told = [word.replace("a b", "a_b") for word in (*command[:index], *words, *command[index:])]
    assert told == text.split()
    assert choice.plan.checkpoint == checkpoint


PARTS = [
    Checkpoint(f"/out/{part.format(number)}", number, number=number, resumable=False)
    for number in (30, 20, 10)
    for part in ("model_{:06d}.pt", "optim_{:06d}_rank0.pt", "optim_{:06d}_rank1.pt")
]


@pytest.mark.parametrize(("missing", "step"), [((), 30), ((0,), 20), ((2,), 20), ((1, 5), 10), ((0, 1, 2), 20)])
def test_a_checkpoint_of_several_files(missing: tuple[int, ...], step: int) -> None:
    """nanochat's: a kill between two of its files leaves the checkpoint before it."""
    found = tuple(each for index, each in enumerate(PARTS) if index not in missing)
    choice = choose(Case(option("--resume-from-step", type=int, default=-1), ("t.py",), found))
    assert choice is not None and choice.plan.words == (f"--resume-from-step={step}",)


def test_a_trainer_whose_folder_has_the_time_in_its_name() -> None:
    """The only trainer of a script gets the newest offer, wherever it was; one of several the offers of the folder that
    it had, and never another's."""

    class Trainer:
        def __init__(self, folder: str) -> None:
            self.args = SimpleNamespace(output_dir=folder)

    def given(folders: list[str], offers: Sequence[str], facts: dict[str, str]) -> str | None:
        trainings = Trainings()
        return [offered(Trainer(folder), trainings, known(offers, {}, facts)) for folder in folders][-1].checkpoint

    offers = ("/out/b/checkpoint-30", "/out/a/checkpoint-20")
    one = {"huggingface.1": "/out/a"}
    two = {**one, "huggingface.2": "/out/b"}
    assert given(["/out/a"], offers, two) == offers[1]
    assert given(["/out/new"], offers, one) == offers[1]
    assert given(["/out/new"], offers[:1], one) == offers[0]
    assert given(["/out/new"], offers[:1], two) is None
    assert given(["/out/first", "/out/new"], offers, two) == offers[0]
    assert given(["/out/new"], offers, {}) is None


def test_lightning_gets_what_it_can_resume_from() -> None:
    """Weights alone are not offered, and where there is nothing else, the sentence says why nothing is."""
    program = Program(uses=frozenset({"lightning"}))
    weights, full = (Checkpoint(f"/out/{step}.ckpt", step, "lightning", step, step == 20) for step in (30, 20))
    assert kit.relaunched(LIGHTNING, program, "t.py", weights, full) == "/out/20.ckpt"
    choice = choose(Case(program, ("t.py",), (weights, full)))
    assert choice is not None and choice.plan.offers == ("/out/20.ckpt",) and choice.plan.checkpoint == full
    assert kit.relaunched(LIGHTNING, program, "t.py", weights).startswith("nothing: Trainer.fit(ckpt_path=…): none of")


LEFT_ALONE = [
    ("given", IMAGENET, "main.py --resume base.pt", FILE, "--resume was given"),
    ("given with =", IMAGENET, "main.py --resume=base.pt", FILE, "--resume was given"),
    ("given in short", IMAGENET, "main.py --res base.pt", FILE, "--resume was given"),
    ("nanogpt, given", NANO, "train.py --init_from=gpt2", CKPT, "--init_from was given"),
    ("finetune", options((("--resume",), {"default": ""}), (("--finetune",), {})), "p.py --finetune x", FILE, "--finetune is given"),
    ("eval", DETECTRON, "net.py --eval-only", FILE, "--eval-only is given"),
    ("megatron, base", MEGATRON, "p.py --load base --save /save", ITERATION, "--load was given"),
    ("megatron, finetune", MEGATRON, "p.py --finetune --save /save", ITERATION, "--finetune was given"),
    ("counts anew", options((("--continue_train",), {"action": "store_true"}), (("--epoch_count",), {"type": int})), "t.py", FILE, "--epoch_count"),
    ("isaac, no target", ISAAC, "t.py", STEP, "--max_iterations"),
    ("isaac, done", ISAAC, "t.py --max_iterations 20", STEP, "are done"),
    ("weights alone", IMAGENET, "main.py", WEIGHTS, "none of the saved files"),
    ("no step in its name", option("--resume-from-step", type=int), "t.py", FILE, "none of the saved files"),
    ("choices", option("--resume", choices=["a", "b"], help="resume"), "t.py", FILE, "none of the saved files"),
    ("accelerate without an option", Program(imports=frozenset({"accelerate"})), "t.py", FOLDER, "has no option"),
    ("fewer ranks", argparsed(lambda p: p.add_argument("--resume", default=""), world=4), "t.py", FILE, "4 ranks"),
    ("horizon", options((("--resume",), {"default": ""}), (("--epochs",), {"type": int}), argv=("--epochs", "90")), "t.py --epochs 300", FILE, "--epochs (90 then, 300 now)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("program", "line", "checkpoint", "why"), [each[1:] for each in LEFT_ALONE], ids=[each[0] for each in LEFT_ALONE]
)
def test_what_is_left_alone(program: Program, line: str, checkpoint: Checkpoint, why: str) -> None:
    """The program is told nothing, and the sentence says why."""
    choice = choose(Case(program, tuple(line.split()), (checkpoint,)))

    assert choice is not None and choice.plan.refused and not choice.plan.words
    assert why in choice.plan.say


UNKNOWN = [
    ("pretrained", option("--pretrained", default="")),
    ("initial checkpoint", option("--initial-checkpoint", default="")),
    ("no resume", option("--no-resume", action="store_true")),
    ("wandb", option("--resume_id", default=None)),
    ("weights", option("--load_weights", default=None)),
    ("start epoch", option("--start-epoch", type=int)),
    ("warm start", option("--resume_from", help="initialize from these pretrained weights only")),
    ("no word of resuming", option("--checkpoint_path", default=None, help="where checkpoints are kept")),
]


@pytest.mark.parametrize("program", [each[1] for each in UNKNOWN], ids=[each[0] for each in UNKNOWN])
def test_what_means_something_else(program: Program) -> None:
    assert choose(Case(program, ("t.py",), (FILE,))) is None


def test_nothing_was_saved() -> None:
    """A program without a checkpoint gets no word, whatever it has; but hydra's stays in its folder."""
    for name, program, line, *_ in TOLD:
        choice = choose(Case(program, tuple(line.split())))
        kept = choice is not None and all(word.startswith("hydra.run.dir=") for word in choice.plan.words)
        assert choice is None or choice.plan.refused or (name == "hydra" and kept)


def test_an_adapter_that_fails() -> None:
    """It is anybody's: what it raises is why the program is told nothing."""

    class Failing:
        name = "failing"

        def knows(self, program: Program) -> bool:
            raise KeyError("x")

        def plan(self, case: Case) -> None: ...

    choice = choose(Case(IMAGENET, ("t.py",), (FILE,)), others=[Failing()])
    assert choice is not None and choice.adapter == "failing" and "KeyError" in choice.plan.say
    assert choose(Case(IMAGENET, ("t.py",), (FILE,)), "off", [Failing()]) is None
    assert choose(Case(IMAGENET, ("t.py",), (FILE,)), "nanogpt") is None


def test_the_kit() -> None:
    """What whoever writes an adapter tries it with says what a relaunch gets, or why nothing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--resume", action="store_true")
    known = kit.program(parser)
    assert kit.relaunched(Generic(), known, "train.py --lr 1", FILE) == "train.py --resume --lr 1"
    assert kit.relaunched(Generic(), known, "train.py --resume", FILE).startswith("nothing: --resume was given")
    assert kit.relaunched(Generic(), known, "train.py") == "nothing"
