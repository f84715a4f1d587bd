#!/usr/bin/env bash
# The one door. `./run.sh` sets everything up and trains the built-in GPT on two ranks, one of which is killed on the way.
#   ./run.sh [ARGUMENTS of supervise launch]     ./run.sh test [ARGUMENTS of pytest]     ./run.sh check
#   ./run.sh chaos: every fault at every moment  ./run.sh soak [--minutes 30]: random faults, the end compared to the bit
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

venv=${VENV:-.venv}
python=${PYTHON:-python3}

# Set up again only when what is to be installed has changed.
stamp="$venv/.installed-$(cksum < pyproject.toml | tr ' ' '-')"
if [ ! -e "$stamp" ]; then
  echo "setting up $venv (once; takes some minutes, most of them for torch)" >&2
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
  rm -f "$venv"/.installed-*
  touch "$stamp"
fi

case "${1-}" in
  test)
    shift
    # Its many processes share what the first of them has compiled.
    unset PYTHONDONTWRITEBYTECODE
    # Five on two cores: tests wait for processes part of their time, and with more a rank waits seconds for a core.
    workers=$(($(nproc) * 5 / 2))
    exec "$venv/bin/python" -m pytest --numprocesses "$workers" --maxprocesses 8 --dist worksteal --durations=10 "$@"
    ;;
  check)
    "$venv/bin/ruff" format --check .
    "$venv/bin/ruff" check .
    exec "$venv/bin/mypy"
    ;;
  chaos)
    shift
    exec "$venv/bin/supervise" chaos --matrix "$@"
    ;;
  soak)
    shift
    exec "$venv/bin/supervise" chaos --minutes 30 "$@"
    ;;
  "")
    # The main job: 150 steps on two ranks; rank 1 is killed in the middle, and the run ends as if nothing had been.
    exec "$venv/bin/supervise" launch --nproc 2 --inject kill:rank=1@step=75 -- --steps 150
    ;;
  *)
    exec "$venv/bin/supervise" launch "$@"
    ;;
esac
