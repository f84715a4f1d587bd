"""What stands on transformers' Trainer or on accelerate. See public_programs."""

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
