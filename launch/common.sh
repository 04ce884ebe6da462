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

# The GPUs visible to CUDA: those that exist, limited by CUDA_VISIBLE_DEVICES, which ends at its first invalid entry.
visible_gpus() {
  local existing entry shown=0
  existing=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true) # its indented lines are MIG slices
  if [[ -z ${CUDA_VISIBLE_DEVICES+set} ]]; then
    echo "$existing"
    return
  fi
  local IFS=,
  for entry in $CUDA_VISIBLE_DEVICES; do
    if [[ $entry == -* ]]; then break; fi
    shown=$((shown + 1))
  done
  echo $((shown < existing ? shown : existing))
}

# Whether the arguments of train choose the CPU; then GPUs do not count.
asks_for_cpu() {
  local previous='' argument
  for argument in "$@"; do
    case "$previous $argument" in
      *" --device=cpu" | "--device cpu" | *" --set=compute.device=cpu" | "--set compute.device=cpu") return 0 ;;
    esac
    previous=$argument
  done
  return 1
}

# Exports NPROC_PER_NODE and OMP_NUM_THREADS if the user has not set them. Arguments: those of train.
choose_processes() {
  local cores gpus=0
  cores=$(usable_cores)
  asks_for_cpu "$@" || gpus=$(visible_gpus)
  if [[ -z ${NPROC_PER_NODE:-} ]]; then
    if ((gpus > 0)); then
      NPROC_PER_NODE=$gpus
    else
      # Convolutions scale better over processes than over threads, but each process holds a model, its optimizer
      # and loader workers of its own (about 1 GB before the first image): 4 is where memory starts to matter.
      NPROC_PER_NODE=$((cores < 4 ? cores : 4))
    fi
  fi
  [[ $NPROC_PER_NODE =~ ^[1-9][0-9]*$ ]] || die "NPROC_PER_NODE='$NPROC_PER_NODE' is not a number of processes."
  # Unset, torchrun gives each process one thread and leaves the other cores idle.
  : "${OMP_NUM_THREADS:=$((cores / NPROC_PER_NODE > 0 ? cores / NPROC_PER_NODE : 1))}"
  export NPROC_PER_NODE OMP_NUM_THREADS
}

# Whether this script was started to ignore SIGHUP, as by nohup: the last hexadecimal digit has the first four signals.
ignores_hangup() {
  [[ $(sed -n 's/^SigIgn:.*\(.\)$/\1/p' "/proc/$$/status" 2>/dev/null) == [13579bdf] ]]
}

# Whether the interpreter's torchrun has the option that names the signals which end it: newer ones have it.
torchrun_takes_signals() {
  local find="import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])" folder
  folder=$("$PYTHON_RUN" -c "$find" 2>/dev/null) && grep -q -e --signals-to-handle "$folder/distributed/run.py" 2>/dev/null
}

# Becomes torchrun with the options before `--` and train with the arguments after it.
run_train() {
  local options=()
  while [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  shift
  choose_python
  if [[ " $* " == *" --help "* ]]; then
    exec "$PYTHON_RUN" -m ddp_ft.train --help # once, not once a process
  fi
  choose_processes "$@"
  if ignores_hangup && torchrun_takes_signals; then # left to itself, torchrun ends on SIGHUP even under nohup
    options+=(--signals-to-handle=SIGTERM,SIGINT,SIGQUIT)
  fi
  exec "$PYTHON_RUN" -m torch.distributed.run "${options[@]}" --nproc_per_node="$NPROC_PER_NODE" -m ddp_ft.train "$@"
}
