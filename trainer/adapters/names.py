"""Names of options that mean "resume from there", and of options that only look like it.

They follow the conventions of 58 public programs. A name alone decides nothing: generic.py also checks the form of its
value.
"""

from __future__ import annotations

import re

RESUME = re.compile(
    r"(auto_)?resume(_training)?|resume_from(_checkpoint|_ckpt|_path|_file|_dir|_step)?|resume_(path|file|dir|ckpt|checkpoint)"
    r"|resume_(checkpoint|ckpt)_(path|file|dir)|resume_model|train_from|continue_(train|training|from|from_checkpoint)"
    r"|load_checkpoint(_dir|_path)?|restart_from|restore_from(_checkpoint)?|restore_(checkpoint|ckpt|path)"
    r"|auto_resume(_from_checkpoints?)?|ckpt_path|checkpoint_path"
)
"""Matches the longest name of an option, in lower case, with words joined by `_`."""
AMBIGUOUS = re.compile(r"ckpt_path|checkpoint_path|load_checkpoint(_dir|_path)?")
"""Some of these name the save path, or the model to evaluate, in other programs. The help must mention resuming."""
SAYS_RESUME = re.compile(r"\b(resum\w*|continu\w*|restart\w*|pick(s|ed)? up)\b", re.IGNORECASE)
WEIGHTS_ONLY = re.compile(
    r"fine.?tun\w*|pre.?trained|weights?.only|only (the )?(model )?weights|warm.?start\w*|transfer.learning"
    r"|initiali[sz]e from|evaluat\w* (a|the|this) (checkpoint|model)|wandb|run id|experiment id",
    re.IGNORECASE,
)
"""In an option's help: the option takes the weights, or something else altogether."""
RESETS = re.compile(
    r"finetune\w*|fine_tune\w*|warm_start|no_load_(optim|rng)|reset_(optim\w*|lr\w*|meters|dataloader|params\w*|lr_scheduler)"
    r"|resume_model_weights_only|weights_only|load_weights_only|no_resume\w*|evaluate|eval|eval_only|test_only"
)
"""With these options a checkpoint is not resumed, or they say that it must not be: refuse then."""
OPTIMIZER = re.compile(r"(^|[^a-z])opt(im\w*)?([^a-z]|$)", re.IGNORECASE)
"""In the name of a file with the state of an optimizer."""
HORIZON = re.compile(
    r"(max_|total_|num_|train_|n_)*(epochs?|steps|iters?|iterations|updates|timesteps|samples|tokens)|num_train_epochs|max_steps"
    r"|target_tokens|(per_device_train_)?(train_)?batch_size|global_batch_size|gradient_accumulation_steps"
)
"""A schedule is computed from these. With another value the rest of the training is not what the run began."""
