"""Small scripts, each in the form of a public program: its parser, its layout of saves, its way to resume.

They follow what these programs had in their repositories in November 2026. All of them train the same model, make 40
steps, and save after each tenth.
"""

from __future__ import annotations

from dataclasses import dataclass

TOY = """
import torch
torch.manual_seed(0)
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(model.parameters(), 0.01)

def step(number):
    data = torch.Generator().manual_seed(number)
    optimizer.zero_grad()
    model(torch.randn(4, 4, generator=data)).square().mean().backward()
    optimizer.step()

def state(**more):
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **more}

def load(saved):
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])

def epochs(start, save):
    for epoch in range(start, 4):
        for batch in range(10):
            step(10 * epoch + batch)
        save(epoch)
    end()

def end():
    torch.save(model.state_dict(), "end.pt")
"""


@dataclass(frozen=True)
class Public:
    """One program."""

    script: str
    arguments: str = ""
    needs: tuple[str, ...] = ()
    """Packages that it is made of."""


NANOGPT = """
import os, torch, toy
out_dir = 'out'
init_from = 'scratch' # 'scratch' or 'resume' or 'gpt2*'
max_iters = 40
config_keys = [k for k,v in globals().items() if not k.startswith('_') and isinstance(v, (int, float, bool, str))]
exec(open('configurator.py').read()) # overrides from command line or config file
config = {k: globals()[k] for k in config_keys}
os.makedirs(out_dir, exist_ok=True)
iter_num = 0
if init_from == 'scratch':
    pass
elif init_from == 'resume':
    checkpoint = torch.load(os.path.join(out_dir, 'ckpt.pt'))
    toy.load(checkpoint)
    iter_num = checkpoint['iter_num']
while True:
    if iter_num > 0 and iter_num % 10 == 0:
        torch.save(toy.state(iter_num=iter_num, config=config), os.path.join(out_dir, 'ckpt.pt'))
    if iter_num == max_iters:
        break
    toy.step(iter_num)
    iter_num += 1
toy.end()
"""
CONFIGURATOR = """
import sys
from ast import literal_eval
for arg in sys.argv[1:]:
    if '=' not in arg:
        exec(open(arg).read())
    else:
        key, val = arg[2:].split('=')
        if key not in globals():
            raise ValueError(f"Unknown config key: {key}")
        try:
            attempt = literal_eval(val)
        except (SyntaxError, ValueError):
            attempt = val
        assert type(attempt) == type(globals()[key])
        globals()[key] = attempt
"""
NANOCHAT = """
import argparse, json, os, torch, toy
parser = argparse.ArgumentParser(description="Pretrain base model")
parser.add_argument("--run", type=str, default="dummy", help="wandb run name ('dummy' disables wandb logging)")
parser.add_argument("--num-iterations", type=int, default=40)
parser.add_argument("--resume-from-step", type=int, default=-1, help="resume training from this step (-1 = disable)")
parser.add_argument("--save-every", type=int, default=-1, help="save checkpoints every N steps (-1 = only at end)")
args = parser.parse_args()
step = 0
if args.resume_from_step != -1:
    step = args.resume_from_step
    toy.model.load_state_dict(torch.load(f"d12/model_{step:06d}.pt"))
    toy.optimizer.load_state_dict(torch.load(f"d12/optim_{step:06d}_rank0.pt"))
    assert json.load(open(f"d12/meta_{step:06d}.json"))["step"] == step
os.makedirs("d12", exist_ok=True)
while step < args.num_iterations:
    toy.step(step)
    step += 1
    if step % args.save_every == 0:
        torch.save(toy.model.state_dict(), f"d12/model_{step:06d}.pt")
        with open(f"d12/meta_{step:06d}.json", "w") as f:
            json.dump({"step": step}, f)
        torch.save(toy.optimizer.state_dict(), f"d12/optim_{step:06d}_rank0.pt")
toy.end()
"""
LITGPT = """
import toy
from pathlib import Path
from typing import Literal, Optional, Union
from jsonargparse import CLI
import lightning as L

def setup(model_name: str, out_dir: Path = Path("out/pretrain"), resume: Union[bool, Literal["auto"], Path] = False):
    '''Pretrain a model.

    Arguments:
        model_name: The name of the model to pretrain.
        out_dir: Directory in which to save checkpoints and logs.
        resume: Path to a checkpoint directory to resume from in case training was interrupted, or ``True`` to resume
            from the latest checkpoint in ``out_dir``. An error will be raised if no checkpoint is found. Passing
            ``'auto'`` will resume from the latest checkpoint but not error if no checkpoint exists.
    '''
    fabric = L.Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(toy.model, toy.optimizer)
    state = {"model": model, "optimizer": optimizer, "step_count": 0}
    if resume == "auto":
        found = sorted(out_dir.glob("step-*/lit_model.pth"))
        resume = found[-1] if found else False
    if resume:
        fabric.load(resume, state)
    while state["step_count"] < 40:
        toy.step(state["step_count"])
        state["step_count"] += 1
        if state["step_count"] % 10 == 0:
            fabric.save(out_dir / f"step-{state['step_count']:08d}" / "lit_model.pth", state)
    toy.end()

CLI({"pretrain": setup, "chat": {"base": setup}})
"""
MINGPT = """
import os, hydra, torch, toy
from omegaconf import DictConfig

@hydra.main(version_base=None, config_path=".", config_name="gpt2_train_cfg")
def main(cfg: DictConfig):
    start = 0
    try:
        with open(cfg.trainer_config.snapshot_path, "rb") as f:
            snapshot = torch.load(f, map_location="cpu")
        toy.load(snapshot)
        start = snapshot["finished_epoch"]
    except FileNotFoundError:
        print("Snapshot not found. Training model from scratch")

    def save(epoch):
        torch.save(toy.state(finished_epoch=epoch + 1), cfg.trainer_config.snapshot_path)

    toy.epochs(start, save)

main()
"""
MINGPT_CONFIG = """
trainer_config:
  max_epochs: 4
  snapshot_path: gpt_snapshot.pt
"""
TORCHTITAN = """
import os, re, torch, tyro, toy
from dataclasses import dataclass, field
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful

@dataclass
class Checkpoint:
    enable: bool = False
    '''Whether to enable checkpoint'''
    folder: str = "checkpoint"
    interval: int = 10
    initial_load_path: str | None = None
    '''This option specifies the path to the initial checkpoint to load'''
    load_step: int = -1
    '''Load the checkpoint at the specified step. If -1, load the latest checkpoint.'''

@dataclass
class Config:
    dump_folder: str = "outputs"
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

config = tyro.cli(Config)
folder = os.path.join(config.dump_folder, config.checkpoint.folder)
os.makedirs(folder, exist_ok=True)
found = [int(m[1]) for name in os.listdir(folder) if (m := re.fullmatch(r"step-(\\d+)", name))
         and os.path.isfile(os.path.join(folder, name, ".metadata"))]
step = 0
class State(Stateful):
    def state_dict(self):
        model, optimizer = get_state_dict(toy.model, toy.optimizer)
        return {"model": model, "optimizer": optimizer, "step": step}
    def load_state_dict(self, saved):
        global step
        set_state_dict(toy.model, toy.optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
        step = saved["step"]
if config.checkpoint.enable and found:
    dcp.load({"app": State()}, checkpoint_id=os.path.join(folder, f"step-{max(found)}"), no_dist=True)
while step < 40:
    toy.step(step)
    step += 1
    if config.checkpoint.enable and step % config.checkpoint.interval == 0:
        dcp.save({"app": State()}, checkpoint_id=os.path.join(folder, f"step-{step}"), no_dist=True)
toy.end()
"""
TRAINER = """
import sys, torch, transformers
from dataclasses import dataclass, field
from datetime import datetime
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 4)
    def forward(self, x):
        return {"loss": self.net(x).square().mean()}
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 80
    def __getitem__(self, index):
        return {"x": torch.randn(4, generator=torch.Generator().manual_seed(index))}
def made(args):
    torch.manual_seed(0)
    return Trainer(Model(), args, train_dataset=Data())
def end(trainer):
    torch.save(trainer.model.state_dict(), "end.pt")
HOW = dict(max_steps=40, save_steps=10, per_device_train_batch_size=2, use_cpu=True, report_to=[], disable_tqdm=True,
           logging_strategy="no")
"""
HF = "--output_dir out --max_steps 40 --save_steps 10 --per_device_train_batch_size 2 --use_cpu --report_to none --disable_tqdm True"
RUN_CLM = (
    TRAINER
    + """
parser = HfArgumentParser((TrainingArguments,))
(training_args,) = parser.parse_args_into_dataclasses()
trainer = made(training_args)
checkpoint = None
if training_args.resume_from_checkpoint is not None:
    checkpoint = training_args.resume_from_checkpoint
trainer.train(resume_from_checkpoint=checkpoint)
end(trainer)
"""
)
AXOLOTL = (
    TRAINER
    + """
import click, os, yaml
@click.group()
def cli():
    pass
@cli.command()
@click.argument("config", type=click.Path(exists=True, path_type=str))
@click.option("--resume-from-checkpoint", type=str, default=None)
@click.option("--auto-resume-from-checkpoints/--no-auto-resume-from-checkpoints", default=None)
def train(config, **kwargs):
    cfg = {**yaml.safe_load(open(config)), **{k: v for k, v in kwargs.items() if v is not None}}
    resume = cfg.get("resume_from_checkpoint")
    if resume is None and cfg.get("auto_resume_from_checkpoints"):
        resume = get_last_checkpoint(cfg["output_dir"]) if os.path.isdir(cfg["output_dir"]) else None
    trainer = made(TrainingArguments(cfg["output_dir"], **HOW))
    trainer.train(resume_from_checkpoint=resume)
    end(trainer)
cli()
"""
)
LLAMA_FACTORY = (
    TRAINER
    + """
import os
parser = HfArgumentParser((TrainingArguments,))
(training_args,) = parser.parse_args_into_dataclasses()
if training_args.resume_from_checkpoint is None and os.path.isdir(training_args.output_dir):
    training_args.resume_from_checkpoint = get_last_checkpoint(training_args.output_dir)
trainer = made(training_args)
trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
end(trainer)
"""
)
TRL = (
    TRAINER
    + """
parser = HfArgumentParser((TrainingArguments,))
(training_args,) = parser.parse_args_into_dataclasses()
trainer = made(training_args)
trainer.train()
end(trainer)
"""
)
SENTENCE_TRANSFORMERS = (
    TRAINER
    + """
model_name = sys.argv[1] if len(sys.argv) > 1 else "distilbert-base-uncased"
output_dir = "output/training_stsbenchmark_" + model_name + "-" + datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
trainer = made(TrainingArguments(output_dir, **HOW))
trainer.train()
end(trainer)
"""
)
ACCELERATED = """
import argparse, os, toy, torch
from accelerate import Accelerator
def parsed(help):
    parser = argparse.ArgumentParser(description="Simple example of training script.")
    parser.add_argument("--checkpointing_steps", type=str, default=None, help="Whether the various states should be "
                        "saved at the end of every n steps, or 'epoch' for each epoch.")
    parser.add_argument("--output_dir", type=str, default=".", help="Optional save directory where all checkpoint "
                        "folders will be stored. Default is the current working directory.")
    parser.add_argument("--resume_from_checkpoint", type=str, default=None, help=help)
    return parser.parse_args()
accelerator = Accelerator(cpu=True)
toy.model, toy.optimizer = accelerator.prepare(toy.model, toy.optimizer)
"""
NO_TRAINER = (
    ACCELERATED
    + """
args = parsed("If the training should continue from a checkpoint folder.")
step = 0
if args.resume_from_checkpoint is not None and args.resume_from_checkpoint != "":
    checkpoint_path = args.resume_from_checkpoint
    path = os.path.basename(args.resume_from_checkpoint)
    accelerator.load_state(checkpoint_path)
    step = int(os.path.splitext(path)[0].replace("step_", ""))
while step < 40:
    toy.step(step)
    step += 1
    if step % int(args.checkpointing_steps) == 0:
        accelerator.save_state(os.path.join(args.output_dir, f"step_{step}"))
torch.save(accelerator.unwrap_model(toy.model).state_dict(), "end.pt")
"""
)
DIFFUSERS = (
    ACCELERATED
    + """
args = parsed("Whether training should be resumed from a previous checkpoint. Use a path saved by"
              ' `--checkpointing_steps`, or `"latest"` to automatically select the last available checkpoint.')
global_step = 0
if args.resume_from_checkpoint:
    if args.resume_from_checkpoint != "latest":
        path = os.path.basename(args.resume_from_checkpoint)
    else:
        dirs = [d for d in os.listdir(args.output_dir) if d.startswith("checkpoint")]
        dirs = sorted(dirs, key=lambda x: int(x.split("-")[1]))
        path = dirs[-1] if len(dirs) > 0 else None
    if path is not None:
        accelerator.load_state(os.path.join(args.output_dir, path))
        global_step = int(path.split("-")[1])
while global_step < 40:
    toy.step(global_step)
    global_step += 1
    if global_step % int(args.checkpointing_steps) == 0:
        accelerator.save_state(os.path.join(args.output_dir, f"checkpoint-{global_step}"))
torch.save(accelerator.unwrap_model(toy.model).state_dict(), "end.pt")
"""
)
OPEN_CLIP = """
import argparse, os, sys, torch, toy
parser = argparse.ArgumentParser()
parser.add_argument("--name", type=str, default=None, help="Optional identifier for the experiment.")
parser.add_argument("--logs", type=str, default="./logs/", help="Where to store tensorboard logs.")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--resume", default=None, type=str, help="path to latest checkpoint (default: none)")
args = parser.parse_args(sys.argv[1:])
resume_latest = args.resume == 'latest'
log_base_path = os.path.join(args.logs, args.name)
if os.path.exists(log_base_path) and not resume_latest:
    print("Error. Experiment already exists. Use --name {} to specify a new experiment.")
    sys.exit(-1)
checkpoint_path = os.path.join(log_base_path, "checkpoints")
os.makedirs(checkpoint_path, exist_ok=True)
if resume_latest:
    found = sorted(os.listdir(checkpoint_path), key=lambda x: int(x.split("_")[1][:-3]))
    args.resume = os.path.join(checkpoint_path, found[-1]) if found else None
start_epoch = 0
if args.resume is not None:
    checkpoint = torch.load(args.resume)
    start_epoch = checkpoint["epoch"]
    toy.load(checkpoint)
def save(epoch):
    torch.save(toy.state(epoch=epoch + 1, name=args.name), os.path.join(checkpoint_path, f"epoch_{epoch + 1}.pt"))
toy.epochs(start_epoch, save)
"""
TIMM = """
import argparse, os, shutil, torch, toy
from datetime import datetime
config_parser = parser = argparse.ArgumentParser(description='Training Config', add_help=False)
parser.add_argument('-c', '--config', default='', type=str, metavar='FILE', help='YAML config file')
parser = argparse.ArgumentParser(description='PyTorch ImageNet Training')
parser.add_argument('data', nargs='?', metavar='DIR', const=None, help='path to dataset')
group = parser.add_argument_group('Model parameters')
group.add_argument('--pretrained', action='store_true', default=False, help='Start with pretrained version')
group.add_argument('--initial-checkpoint', default='', type=str, metavar='PATH',
                   help='Load this checkpoint into model after initialization (default: none)')
group.add_argument('--resume', default='', type=str, metavar='PATH',
                   help='Resume full model and optimizer state from checkpoint (default: none)')
group.add_argument('--no-resume-opt', action='store_true', default=False,
                   help='prevent resume of optimizer state when resuming model')
group.add_argument('--start-epoch', default=None, type=int, metavar='N', help='manual epoch number')
group.add_argument('--epochs', type=int, default=4, metavar='N', help='number of epochs to train (default: 300)')
args_config, remaining = config_parser.parse_known_args()
args = parser.parse_args(remaining)
output_dir = os.path.join('output', 'train', datetime.now().strftime("%Y%m%d-%H%M%S-%f"))
os.makedirs(output_dir)
start_epoch = 0
if args.resume:
    checkpoint = torch.load(args.resume)
    toy.model.load_state_dict(checkpoint['state_dict'])
    if not args.no_resume_opt:
        toy.optimizer.load_state_dict(checkpoint['optimizer'])
    start_epoch = checkpoint['epoch'] + 1
def save(epoch):
    saved = {'epoch': epoch, 'arch': 'toy', 'state_dict': toy.model.state_dict(), 'optimizer': toy.optimizer.state_dict()}
    tmp, last = os.path.join(output_dir, 'tmp.pth.tar'), os.path.join(output_dir, 'last.pth.tar')
    torch.save(saved, tmp)
    os.replace(tmp, last)
    shutil.copyfile(last, os.path.join(output_dir, f'checkpoint-{epoch}.pth.tar'))
toy.epochs(start_epoch, save)
"""
IMAGENET = """
import argparse, os, shutil, torch, toy
parser = argparse.ArgumentParser(description='PyTorch ImageNet Training')
parser.add_argument('data', metavar='DIR', nargs='?', default='imagenet', help='path to dataset (default: imagenet)')
parser.add_argument('--epochs', default=4, type=int, metavar='N', help='number of total epochs to run')
parser.add_argument('--start-epoch', default=0, type=int, metavar='N', help='manual epoch number (useful on restarts)')
parser.add_argument('--resume', default='', type=str, metavar='PATH', help='path to latest checkpoint (default: none)')
parser.add_argument('-e', '--evaluate', dest='evaluate', action='store_true', help='evaluate model on validation set')
parser.add_argument('--pretrained', dest='pretrained', action='store_true', help='use pre-trained model')
args = parser.parse_args()
if args.resume:
    if os.path.isfile(args.resume):
        checkpoint = torch.load(args.resume)
        args.start_epoch = checkpoint['epoch']
        toy.model.load_state_dict(checkpoint['state_dict'])
        toy.optimizer.load_state_dict(checkpoint['optimizer'])
    else:
        print("=> no checkpoint found at '{}'".format(args.resume))
def save(epoch, filename='checkpoint.pth.tar'):
    torch.save({'epoch': epoch + 1, 'arch': 'toy', 'state_dict': toy.model.state_dict(), 'best_acc1': epoch,
                'optimizer': toy.optimizer.state_dict()}, filename)
    shutil.copyfile(filename, 'model_best.pth.tar')
toy.epochs(args.start_epoch, save)
"""
VISION = """
import argparse, os, torch, toy
parser = argparse.ArgumentParser(description="PyTorch Classification Training", add_help=True)
parser.add_argument("--epochs", default=4, type=int, metavar="N", help="number of total epochs to run")
parser.add_argument("--output-dir", default=".", type=str, help="path to save outputs")
parser.add_argument("--resume", default="", type=str, help="path of checkpoint")
parser.add_argument("--start-epoch", default=0, type=int, metavar="N", help="start epoch")
parser.add_argument("--test-only", dest="test_only", help="Only test the model", action="store_true")
parser.add_argument("--weights", default=None, type=str, help="the weights enum name to load")
args = parser.parse_args()
if args.resume:
    checkpoint = torch.load(args.resume, map_location="cpu")
    toy.load(checkpoint)
    args.start_epoch = checkpoint["epoch"] + 1
def save(epoch):
    checkpoint = toy.state(epoch=epoch, args=vars(args))
    torch.save(checkpoint, os.path.join(args.output_dir, f"model_{epoch}.pth"))
    torch.save(checkpoint, os.path.join(args.output_dir, "checkpoint.pth"))
toy.epochs(args.start_epoch, save)
"""
DETECTRON2 = """
import argparse, os, torch, toy
parser = argparse.ArgumentParser()
parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
parser.add_argument("--resume", action="store_true",
    help="Whether to attempt to resume from the checkpoint directory. See documentation of `DefaultTrainer.resume_or_load()` "
    "for what it means.")
parser.add_argument("--eval-only", action="store_true", help="perform evaluation only")
parser.add_argument("--num-gpus", type=int, default=1, help="number of gpus *per machine*")
parser.add_argument("opts", help="Modify config options at the end of the command.", default=None, nargs=argparse.REMAINDER)
args = parser.parse_args()
os.makedirs("output", exist_ok=True)
start_iter = 0
if args.resume and os.path.exists("output/last_checkpoint"):
    checkpoint = torch.load(os.path.join("output", open("output/last_checkpoint").read().strip()))
    toy.load(checkpoint)
    start_iter = checkpoint["iteration"] + 1
for iteration in range(start_iter, 40):
    toy.step(iteration)
    if (iteration + 1) % 10 == 0:
        name = "model_{:07d}.pth".format(iteration)
        with open(os.path.join("output", name), "wb") as f:
            torch.save(toy.state(iteration=iteration), f)
        with open("output/last_checkpoint", "w") as f:
            f.write(name)
toy.end()
"""
MMDETECTION = """
import argparse, os, torch, toy
parser = argparse.ArgumentParser(description='Train a detector')
parser.add_argument('config', help='train config file path')
parser.add_argument('--work-dir', help='the dir to save logs and models')
parser.add_argument('--amp', action='store_true', default=False, help='enable automatic-mixed-precision training')
parser.add_argument('--resume', nargs='?', type=str, const='auto',
    help='If specify checkpoint path, resume from it, while if not specify, try to auto resume from the latest checkpoint '
    'in the work directory.')
parser.add_argument('--cfg-options', nargs='+', help='override some settings in the used config')
args = parser.parse_args()
resume = load_from = None
if args.resume == 'auto':
    resume = True
elif args.resume is not None:
    resume, load_from = True, args.resume
os.makedirs(args.work_dir, exist_ok=True)
if resume and load_from is None and os.path.exists(f"{args.work_dir}/last_checkpoint"):
    load_from = open(f"{args.work_dir}/last_checkpoint").read()
epoch = 0
if load_from is not None:
    checkpoint = torch.load(load_from)
    toy.model.load_state_dict(checkpoint['state_dict'])
    toy.optimizer.load_state_dict(checkpoint['optimizer'])
    epoch = checkpoint['meta']['epoch']
def save(epoch):
    name = os.path.join(args.work_dir, f'epoch_{epoch + 1}.pth')
    torch.save({'meta': {'epoch': epoch + 1, 'iter': 10 * epoch + 10}, 'state_dict': toy.model.state_dict(),
                'optimizer': toy.optimizer.state_dict()}, name)
    with open(os.path.join(args.work_dir, 'last_checkpoint'), 'w') as f:
        f.write(name)
toy.epochs(epoch, save)
"""
FAIRSEQ = """
import argparse, os, shutil, torch, toy
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("data")
parser.add_argument("--save-dir", metavar="DIR", default="checkpoints", help="path to save checkpoints")
parser.add_argument("--restore-file", default="checkpoint_last.pt",
    help="filename from which to load checkpoint (default: <save-dir>/checkpoint_last.pt")
parser.add_argument("--continue-once", default=None, help="continues from this checkpoint, unless a checkpoint indicated in "
    "'restore_file' option is present")
parser.add_argument("--finetune-from-model", default=None, help="finetune from a pretrained model")
parser.add_argument("--reset-optimizer", action="store_true", help="if set, does not load optimizer state from the checkpoint")
parser.add_argument("--max-epoch", type=int, default=4)
args = parser.parse_args()
os.makedirs(args.save_dir, exist_ok=True)
path, start = os.path.join(args.save_dir, args.restore_file), 0
if os.path.exists(path):
    with open(path, "rb") as f:
        state = torch.load(f, map_location="cpu")
    toy.load(state)
    start = state["extra_state"]["epoch"]
def save(epoch):
    first = os.path.join(args.save_dir, f"checkpoint{epoch + 1}.pt")
    torch.save(toy.state(extra_state={"epoch": epoch + 1}), first + ".tmp")
    os.rename(first + ".tmp", first)
    shutil.copyfile(first, os.path.join(args.save_dir, "checkpoint_last.pt"))
toy.epochs(start, save)
"""
METASEQ = FAIRSEQ.replace("checkpoint_last.pt", "checkpoint_last-shard0.pt")
ESPNET = """
import argparse, os, torch, toy
def str2bool(value):
    return {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}[value.lower()]
parser = argparse.ArgumentParser()
parser.add_argument("--config", help="Give config file in yaml format")
parser.add_argument("--output_dir", type=str, default="exp")
parser.add_argument("--max_epoch", type=int, default=4, help="The maximum number epoch to train")
parser.add_argument("--resume", type=str2bool, default=False, help="Enable resuming if checkpoint is existing")
parser.add_argument("--init_param", type=str, default=[], nargs="*", help="Specify the file path used for initialization")
args = parser.parse_args()
os.makedirs(args.output_dir, exist_ok=True)
start = 0
if args.resume and os.path.exists(f"{args.output_dir}/checkpoint.pth"):
    states = torch.load(f"{args.output_dir}/checkpoint.pth")
    toy.load(states)
    start = states["reporter"]["epoch"]
def save(epoch):
    torch.save(toy.state(reporter={"epoch": epoch + 1}), f"{args.output_dir}/checkpoint.pth")
    torch.save(toy.model.state_dict(), f"{args.output_dir}/{epoch + 1}epoch.pth")
toy.epochs(start, save)
"""
SPEECHBRAIN = """
import argparse, os, time, torch, toy
parser = argparse.ArgumentParser(description="Run a SpeechBrain experiment")
parser.add_argument("param_file", type=str, help="A yaml-formatted file using the extended YAML syntax.")
parser.add_argument("--debug", default=False, action="store_true")
parser.add_argument("--number_of_epochs", type=int, default=4)
args, overrides = parser.parse_known_args()
os.makedirs("results/save", exist_ok=True)
found = sorted(name for name in os.listdir("results/save") if name.startswith("CKPT+"))
start = 0
if found:
    folder = os.path.join("results/save", found[-1])
    toy.model.load_state_dict(torch.load(os.path.join(folder, "model.ckpt")))
    toy.optimizer.load_state_dict(torch.load(os.path.join(folder, "optimizer.ckpt")))
    start = int(open(os.path.join(folder, "counter.ckpt")).read())
def save(epoch):
    folder = os.path.join("results/save", time.strftime("CKPT+%Y-%m-%d+%H-%M-%S+") + f"{epoch:02d}")
    os.makedirs(folder)
    with open(os.path.join(folder, "CKPT.yaml"), "w") as f:
        f.write(f"epoch: {epoch}")
    torch.save(toy.model.state_dict(), os.path.join(folder, "model.ckpt"))
    with open(os.path.join(folder, "counter.ckpt"), "w") as f:
        f.write(str(epoch + 1))
    torch.save(toy.optimizer.state_dict(), os.path.join(folder, "optimizer.ckpt"))
toy.epochs(start, save)
"""
LIGHTNING = """
import lightning.pytorch as pl, torch
class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 4)
    def training_step(self, batch, index):
        return self.net(batch[0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)
torch.manual_seed(0)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(40, 4)), batch_size=4)
keep = pl.callbacks.ModelCheckpoint(save_last=True, save_top_k=-1, dirpath=FOLDER)
trainer = pl.Trainer(max_epochs=4, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=[keep])
model = Model()
"""
FIT = """
trainer.fit(model, data)
torch.save(model.net.state_dict(), "end.pt")
"""
NEMO = (
    """
import hydra
from datetime import datetime
@hydra.main(version_base=None, config_path=".", config_name="nemo")
def main(cfg):
    # exp_manager: a folder with the time, unless exp_manager.resume_if_exists
    FOLDER = f"nemo_experiments/{cfg.name}/" + datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f") + "/checkpoints"
"""
    + (LIGHTNING + FIT).replace("\n", "\n    ")
    + """
main()
"""
)
MEGATRON = """
import argparse, os, torch, toy
parser = argparse.ArgumentParser(description='Megatron-LM Arguments', allow_abbrev=False)
group = parser.add_argument_group(title='checkpointing')
group.add_argument('--save', type=str, default=None, help='Output directory to save checkpoints to.')
group.add_argument('--save-interval', type=int, default=None, help='Number of iterations between checkpoint saves.')
group.add_argument('--no-save-optim', action='store_true', default=None, help='Do not save current optimizer.')
group.add_argument('--load', type=str, default=None, help='Directory containing a model checkpoint.')
group.add_argument('--no-load-optim', action='store_true', default=None, help='Do not load optimizer when loading checkpoint.')
group.add_argument('--no-load-rng', action='store_true', default=None, help='Do not load rng state when loading checkpoint.')
group.add_argument('--finetune', action='store_true', help='Load model for finetuning. Do not load optimizer or rng state')
group.add_argument('--train-iters', type=int, default=None, help='Total number of iterations to train over all training runs.')
args = parser.parse_args()
iteration = 0
tracker = args.load and os.path.join(args.load, 'latest_checkpointed_iteration.txt')
if tracker and os.path.isfile(tracker):
    iteration = int(open(tracker).read())
    toy.load(torch.load(os.path.join(args.load, f'iter_{iteration:07d}', 'mp_rank_00', 'model_optim_rng.pt')))
while iteration < args.train_iters:
    toy.step(iteration)
    iteration += 1
    if iteration % args.save_interval == 0:
        folder = os.path.join(args.save, f'iter_{iteration:07d}', 'mp_rank_00')
        os.makedirs(folder, exist_ok=True)
        torch.save(toy.state(iteration=iteration), os.path.join(folder, 'model_optim_rng.pt'))
        with open(os.path.join(args.save, 'latest_checkpointed_iteration.txt'), 'w') as f:
            f.write(str(iteration))
toy.end()
"""
DEEPSPEED = """
import fire, os, pathlib, torch, toy
from datetime import datetime
def train(checkpoint_dir: str = None, load_checkpoint_dir: str = None, num_iterations: int = 40, checkpoint_every: int = 10,
          local_rank: int = -1):
    \"\"\"Trains a [Bert style](https://arxiv.org/pdf/1810.04805.pdf) (transformer encoder only) model for MLM Task

    Args:
        checkpoint_dir (str): The base experiment directory to save experiments to
        load_checkpoint_dir (str, optional): The directory of an experiment to continue from. Defaults to None.
        num_iterations (int, optional): Total number of iterations to run the model for. Defaults to 10000.
        checkpoint_every (int, optional): Save checkpoint after these many steps. Defaults to 1000.
    \"\"\"
    exp_dir = load_checkpoint_dir or os.path.join(checkpoint_dir, datetime.now().strftime("bert.%Y.%m.%d.%H.%M.%S.%f"))
    start_step = 1
    if load_checkpoint_dir is not None:
        tag = open(os.path.join(exp_dir, "latest")).read()
        saved = torch.load(os.path.join(exp_dir, tag, "mp_rank_00_model_states.pt"))
        toy.load({**saved, **torch.load(os.path.join(exp_dir, tag, "zero_pp_rank_0_mp_rank_00_optim_states.pt"))})
        start_step = saved["checkpoint_step"] + 1
    for step in range(start_step, num_iterations + 1):
        toy.step(step - 1)
        if step % checkpoint_every == 0:
            folder = os.path.join(exp_dir, f"global_step{step}")
            os.makedirs(folder, exist_ok=True)
            torch.save({"model": toy.model.state_dict(), "checkpoint_step": step},
                       os.path.join(folder, "mp_rank_00_model_states.pt"))
            torch.save({"optimizer": toy.optimizer.state_dict()},
                       os.path.join(folder, "zero_pp_rank_0_mp_rank_00_optim_states.pt"))
            with open(os.path.join(exp_dir, "latest"), "w") as f:
                f.write(f"global_step{step}")
    toy.end()
fire.Fire(train)
"""
TORCHTUNE_PACKAGE = """
import argparse, functools, sys
from omegaconf import OmegaConf
def parse(recipe_main):
    @functools.wraps(recipe_main)
    def wrapper():
        parser = argparse.ArgumentParser(description=recipe_main.__doc__)
        parser.add_argument("--config", type=str, help="Path/name of a yaml file with recipe args", required=True)
        namespace, unknown_args = parser.parse_known_args()
        unknown_flag_args = [arg for arg in unknown_args if arg.startswith("--")]
        if unknown_flag_args:
            raise ValueError(f"Additional flag arguments not supported: {unknown_flag_args}.")
        conf = OmegaConf.merge(OmegaConf.load(namespace.config), OmegaConf.from_dotlist(unknown_args))
        sys.exit(recipe_main(conf))
    return wrapper
"""
TORCHTUNE_CONFIG = """
output_dir: out
checkpointer:
  checkpoint_dir: base
  checkpoint_files: [model.safetensors]
  output_dir: ${output_dir}
resume_from_checkpoint: False
epochs: 4
"""
TORCHTUNE = """
import os, torch, toy
from safetensors.torch import load_file, save_file
import torchtune
@torchtune.parse
def recipe_main(cfg):
    out, start = cfg.checkpointer.output_dir, 0
    if cfg.resume_from_checkpoint:
        paths = [os.path.join(out, name) for name in cfg.checkpointer.checkpoint_files]
        state = torch.load(os.path.join(out, "recipe_state", "recipe_state.pt"))
        toy.model.load_state_dict({key: value for path in paths for key, value in load_file(path).items()})
        toy.optimizer.load_state_dict(state["optimizer"])
        start = state["epochs_run"]
    os.makedirs(f"{out}/recipe_state", exist_ok=True)
    def save(epoch):
        os.makedirs(f"{out}/epoch_{epoch}", exist_ok=True)
        for number, (key, value) in enumerate(toy.model.state_dict().items(), 1):
            save_file({key: value}, f"{out}/epoch_{epoch}/model-{number:05d}-of-00002.safetensors")
        torch.save({"optimizer": toy.optimizer.state_dict(), "epochs_run": epoch + 1, "seed": 1}, f"{out}/recipe_state/recipe_state.pt")
    toy.epochs(start, save)
recipe_main()
"""
YOLO_MODEL = """
import io, torch, toy
from pathlib import Path
class Trainer:
    def __init__(self, overrides):
        self.args, self.start_epoch = overrides, 0
        if resume := overrides.get("resume"):
            exists = isinstance(resume, (str, Path)) and Path(resume).exists()
            last = Path(resume if exists else max(Path(".").glob("**/last*.pt"), key=lambda p: p.stat().st_ctime))
            self.ckpt = torch.load(last, weights_only=False)
            self.args = {**self.ckpt["train_args"], "resume": str(last)}
            self.save_dir = last.parent.parent
        else:
            number = 2
            self.save_dir = Path("runs/detect/train")
            while self.save_dir.exists():
                self.save_dir, number = Path(f"runs/detect/train{number}"), number + 1
        self.wdir = self.save_dir / "weights"
        self.last, self.best = self.wdir / "last.pt", self.wdir / "best.pt"
        self.wdir.mkdir(parents=True, exist_ok=True)
    def save_model(self, epoch):
        buffer = io.BytesIO()
        torch.save({"epoch": epoch, "model": None, "ema": toy.model.state_dict(), "optimizer": toy.optimizer.state_dict(),
                    "train_args": self.args}, buffer)
        serialized_ckpt = buffer.getvalue()
        self.last.write_bytes(serialized_ckpt)
        self.best.write_bytes(serialized_ckpt)
    def train(self):
        start = 0
        if self.args.get("resume"):
            toy.load({"model": self.ckpt["ema"], "optimizer": self.ckpt["optimizer"]})
            start = self.ckpt["epoch"] + 1
        toy.epochs(start, self.save_model)
class Model:
    def __init__(self, model="yolo11n.pt"):
        self.overrides = {"model": model}
    def train(self, trainer=None, **kwargs):
        self.trainer = (trainer or Trainer)(overrides={**self.overrides, **kwargs, "mode": "train"})
        self.trainer.train()
"""
YOLO = """
from ultralytics.engine.model import Model as YOLO
YOLO("yolo11n.yaml").train(data="coco8.yaml", epochs=4) # toy.
"""
PROGRAMS = {
    "nanoGPT": Public(NANOGPT),
    "nanochat": Public(NANOCHAT, "--save-every 10"),
    "litgpt": Public(LITGPT, "pretrain pythia-14m --out_dir out", ("jsonargparse", "lightning")),
    "minGPT-ddp": Public(MINGPT, "trainer_config.max_epochs=4", ("hydra",)),
    "torchtitan": Public(TORCHTITAN, "--checkpoint.enable", ("tyro",)),
    "torchtune": Public(TORCHTUNE, "--config recipe.yaml epochs=4", ("omegaconf",)),
    "axolotl": Public(AXOLOTL, "train axolotl.yaml", ("transformers", "click")),
    "LLaMA-Factory": Public(LLAMA_FACTORY, HF, ("transformers",)),
    "trl": Public(TRL, HF, ("transformers",)),
    "run_clm": Public(RUN_CLM, HF, ("transformers",)),
    "no_trainer": Public(NO_TRAINER, "--checkpointing_steps 10 --output_dir out", ("accelerate",)),
    "accelerate": Public(NO_TRAINER, "--checkpointing_steps 10", ("accelerate",)),
    "diffusers": Public(DIFFUSERS, "--checkpointing_steps 10 --output_dir out", ("accelerate",)),
    "sentence-transformers": Public(SENTENCE_TRANSFORMERS, "bert-base-uncased", ("transformers",)),
    "peft": Public(RUN_CLM, HF, ("transformers",)),
    "open_clip": Public(OPEN_CLIP, "--name mine"),
    "timm": Public(TIMM, "data --epochs 4"),
    "imagenet": Public(IMAGENET, "data"),
    "torchvision": Public(VISION, "--epochs 4"),
    "detectron2": Public(DETECTRON2, "--config-file x.yaml SOLVER.BASE_LR 0.01"),
    "mmdetection": Public(MMDETECTION, "config.py --work-dir work"),
    "ultralytics": Public(YOLO),
    "fairseq": Public(FAIRSEQ, "data-bin"),
    "metaseq": Public(METASEQ, "data-bin"),
    "espnet": Public(ESPNET, "--output_dir exp"),
    "speechbrain": Public(SPEECHBRAIN, "train.yaml"),
    "NeMo": Public(NEMO, "", ("hydra", "lightning")),
    "Megatron-LM": Public(MEGATRON, "--save checkpoints --save-interval 10 --train-iters 40"),
    "DeepSpeedExamples": Public(DEEPSPEED, "--checkpoint_dir exp", ("fire",)),
    "Lightning": Public("FOLDER = None\n" + LIGHTNING + FIT, "", ("lightning",)),
}
FILES = {
    "toy.py": TOY,
    "configurator.py": CONFIGURATOR,
    "gpt2_train_cfg.yaml": MINGPT_CONFIG,
    "nemo.yaml": "name: megatron_gpt\n",
    "axolotl.yaml": "output_dir: out\n",
    "ultralytics/__init__.py": "",
    "ultralytics/engine/__init__.py": "",
    "ultralytics/engine/model.py": YOLO_MODEL,
    "torchtune.py": TORCHTUNE_PACKAGE,
    "recipe.yaml": TORCHTUNE_CONFIG,
    "train.yaml": "seed: 1\n",
}
