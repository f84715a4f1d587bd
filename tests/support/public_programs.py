"""Small scripts, each in the form of a public program: its parser, its layout of saves, its way to resume.

They follow what these programs had in their repositories in November 2026. All of them train the same model, make 40
steps, and save after each tenth.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.programs import hugging_face, language, speech, vision

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


PROGRAMS = {
    "nanoGPT": Public(language.NANOGPT),
    "nanochat": Public(language.NANOCHAT, "--save-every 10"),
    "litgpt": Public(language.LITGPT, "pretrain pythia-14m --out_dir out", ("jsonargparse", "lightning")),
    "minGPT-ddp": Public(language.MINGPT, "trainer_config.max_epochs=4", ("hydra",)),
    "torchtitan": Public(language.TORCHTITAN, "--checkpoint.enable", ("tyro",)),
    "torchtune": Public(language.TORCHTUNE, "--config recipe.yaml epochs=4", ("omegaconf",)),
    "axolotl": Public(hugging_face.AXOLOTL, "train axolotl.yaml", ("transformers", "click")),
    "LLaMA-Factory": Public(hugging_face.LLAMA_FACTORY, hugging_face.HF, ("transformers",)),
    "trl": Public(hugging_face.TRL, hugging_face.HF, ("transformers",)),
    "run_clm": Public(hugging_face.RUN_CLM, hugging_face.HF, ("transformers",)),
    "no_trainer": Public(hugging_face.NO_TRAINER, "--checkpointing_steps 10 --output_dir out", ("accelerate",)),
    "accelerate": Public(hugging_face.NO_TRAINER, "--checkpointing_steps 10", ("accelerate",)),
    "diffusers": Public(hugging_face.DIFFUSERS, "--checkpointing_steps 10 --output_dir out", ("accelerate",)),
    "sentence-transformers": Public(hugging_face.SENTENCE_TRANSFORMERS, "bert-base-uncased", ("transformers",)),
    "peft": Public(hugging_face.RUN_CLM, hugging_face.HF, ("transformers",)),
    "open_clip": Public(vision.OPEN_CLIP, "--name mine"),
    "timm": Public(vision.TIMM, "data --epochs 4"),
    "imagenet": Public(vision.IMAGENET, "data"),
    "torchvision": Public(vision.VISION, "--epochs 4"),
    "detectron2": Public(vision.DETECTRON2, "--config-file x.yaml SOLVER.BASE_LR 0.01"),
    "mmdetection": Public(vision.MMDETECTION, "config.py --work-dir work"),
    "ultralytics": Public(vision.YOLO),
    "fairseq": Public(speech.FAIRSEQ, "data-bin"),
    "metaseq": Public(speech.METASEQ, "data-bin"),
    "espnet": Public(speech.ESPNET, "--output_dir exp"),
    "speechbrain": Public(speech.SPEECHBRAIN, "train.yaml"),
    "NeMo": Public(speech.NEMO, "", ("hydra", "lightning")),
    "Megatron-LM": Public(language.MEGATRON, "--save checkpoints --save-interval 10 --train-iters 40"),
    "DeepSpeedExamples": Public(language.DEEPSPEED, "--checkpoint_dir exp", ("fire",)),
    "Lightning": Public("FOLDER = None\n" + speech.LIGHTNING + speech.FIT, "", ("lightning",)),
}
FILES = {
    "toy.py": TOY,
    "configurator.py": language.CONFIGURATOR,
    "gpt2_train_cfg.yaml": language.MINGPT_CONFIG,
    "nemo.yaml": "name: megatron_gpt\n",
    "axolotl.yaml": "output_dir: out\n",
    "ultralytics/__init__.py": "",
    "ultralytics/engine/__init__.py": "",
    "ultralytics/engine/model.py": vision.YOLO_MODEL,
    "torchtune.py": language.TORCHTUNE_PACKAGE,
    "recipe.yaml": language.TORCHTUNE_CONFIG,
    "train.yaml": "seed: 1\n",
}
