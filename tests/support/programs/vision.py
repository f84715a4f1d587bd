"""Images: classifiers and detectors. See public_programs."""

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
