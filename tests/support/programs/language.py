"""Language models: their own loops. See public_programs."""

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
