"""Draws docs/run-page.png: the page of a real run, as Chromium shows it.

python benchmarks/picture.py [--out docs]

Two ranks train the built-in GPT. One is killed, later the other hangs. Needs chromium or chromium-headless-shell.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT

MODEL = "--n-layer 2 --n-head 2 --n-embd 64 --block-size 32 --steps 600 --snapshot-every 10".split()
FAULTS = ("kill:rank=1@step=180", "stop:rank=0@step=400")
SIZE = "1100,1570"
"""Down to the time lines of the attempts and the ranks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    given = parser.parse_args()
    browser = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if browser is None:
        sys.exit("no Chromium here: apt-get install chromium-headless-shell")
    picture = given.out.resolve() / "run-page.png"
    with tempfile.TemporaryDirectory() as folder:
        supervise = [str(Path(sys.executable).with_name("supervise"))]
        faults = [word for fault in FAULTS for word in ("--inject", fault)]
        launch = ["launch", "--name", "gpt", "--nproc", "2", "--hang-timeout", "5s", *faults, "--", *MODEL]
        subprocess.run([*supervise, *launch], cwd=folder, check=True)
        subprocess.run([*supervise, "report", "--html", "page.html"], cwd=folder, check=True)
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000"]
        words = [browser, *quiet, f"--user-data-dir={folder}/browser", f"--window-size={SIZE}"]
        page = Path(folder, "page.html").as_uri()
        subprocess.run([*words, f"--screenshot={picture}", page], check=True, stderr=subprocess.DEVNULL)
    print(picture)


if __name__ == "__main__":
    main()
