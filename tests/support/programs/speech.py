"""Sequences and speech, and Lightning, on which NeMo stands. See public_programs."""

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
