# Functions of the launch scripts; sourced, never run.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf '%s\n' "$*" >&2; }

# The exit code of a user's mistake, as everywhere in ddp_ft.
die() {
  say "error: $*"
  exit 2
}

# The comment at the head of a script is its usage text, so that the two cannot differ.
usage() { sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p}' "$0"; }

# Sets PYTHON_RUN to the interpreter to launch with: DDP_FT_PYTHON, else the clone's .venv, else python3.
choose_python() {
  PYTHON_RUN=${DDP_FT_PYTHON:-}
  if [[ -z $PYTHON_RUN && -x $ROOT/.venv/bin/python ]]; then
    PYTHON_RUN=$ROOT/.venv/bin/python
  elif [[ -z $PYTHON_RUN ]]; then
    PYTHON_RUN=python3
    # On a GPU machine without a network the packages may be installed without ddp_ft: use the clone.
    export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
  fi
  command -v "$PYTHON_RUN" >/dev/null || die "no Python at '$PYTHON_RUN': run launch/demo.sh once, or set DDP_FT_PYTHON."
}

# The cores that affinity leaves to this process. nproc prints OMP_NUM_THREADS if it is set, hence env -u.
usable_cores() {
  env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN
}
