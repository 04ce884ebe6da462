#!/usr/bin/env bash
# Usage: launch/setup.sh EXTRA[,EXTRA]      (the extras of setup.cfg: test, demo)
#
# Makes .venv in the clone and installs ddp_ft with these extras into it, or returns at once if that is done.
#
# Environment:
#   PYTHON            interpreter (>= 3.10) to make .venv with; default: the newest that runs
#   DDP_FT_PYTHON     an interpreter that has all packages already: then nothing is made or installed
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

VENV=$ROOT/.venv
# A killed install leaves files that pip takes for whole packages; this mark records it.
UNFINISHED=$VENV/.ddp_ft-unfinished

can_run() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }
can_make_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }
version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null; }

# Prints the interpreter to make .venv with. A name on the PATH is not enough: pyenv's shims exist but refuse to run.
find_python() {
  local candidate running=''
  if [[ -n ${PYTHON:-} ]]; then
    can_run "$PYTHON" || die "PYTHON='$PYTHON' does not run, or is older than Python 3.10."
    running=$PYTHON
    if can_make_venv "$PYTHON"; then echo "$PYTHON" && return; fi
  else
    for candidate in python3.13 python3.12 python3.11 python3.10 python3 python; do
      can_run "$candidate" || continue
      running=${running:-$candidate}
      if can_make_venv "$candidate"; then echo "$candidate" && return; fi
    done
  fi
  [[ -n $running ]] || die "no Python >= 3.10 found; install one, or name one: PYTHON=/path/to/python $0"
  die "$running cannot make virtual environments (no venv or ensurepip). On Debian and Ubuntu: apt install $(
    "$running" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
  )"
}

# What an installation depends on.
fingerprint() {
  echo "$(cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" | cksum) $(version_of "$VENV/bin/python") $VENV"
}

is_installed() {
  local extra
  [[ ! -e $UNFINISHED && -x $VENV/bin/python ]] || return 1
  if [[ -n ${PYTHON:-} && $(version_of "$PYTHON") != "$(version_of "$VENV/bin/python")" ]]; then return 1; fi
  for extra in ${1//,/ }; do
    [[ $(cat "$VENV/.ddp_ft-$extra" 2>/dev/null) == "$(fingerprint)" ]] || return 1
  done
}

# Prints why an existing .venv must be made anew; nothing if it can be kept.
why_remake() {
  if [[ -e $UNFINISHED ]]; then
    echo "an earlier set-up was interrupted"
  elif ! can_run "$VENV/bin/python" || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "it is incomplete or too old"
  elif ! head -n 3 "$VENV/bin/pip" | grep -qF "$VENV/"; then
    echo "the clone was moved" # scripts in .venv/bin hold absolute paths
  elif [[ -n ${PYTHON:-} && $(version_of "$PYTHON") != "$(version_of "$VENV/bin/python")" ]]; then
    echo "PYTHON is $(version_of "$PYTHON")"
  fi
}

make_venv() {
  local python reason
  if [[ -e $VENV ]]; then
    reason=$(why_remake)
    [[ -n $reason ]] || return 0
    # The environment of another clone, perhaps: making it anew would remove all that is in it.
    [[ ! -L $VENV ]] || die ".venv is a link to $(readlink "$VENV"), and cannot be used as it is: $reason." \
      "Remove the link, or name that environment's interpreter: DDP_FT_PYTHON=$(readlink -f "$VENV")/bin/python"
    say "Making .venv anew: $reason."
  fi
  python=$(find_python)
  # If this is interrupted, pip does not run in it, which the next start detects.
  "$python" -m venv --clear "$VENV" >"$LOG" 2>&1 || failed "$python could not make $VENV"
}

failed() {
  tail -n 30 "$LOG" >&2
  say "error: $* (the whole log: $LOG)"
  exit 1
}

install() {
  local extras=$1 extra start=$SECONDS
  make_venv
  say "Installing ddp_ft[$extras] into .venv with Python $(version_of "$VENV/bin/python");" \
    "the first time that is about 6 GB and 2 minutes or more ..."
  touch "$UNFINISHED"
  if ! "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -e ".[$extras]" >"$LOG" 2>&1; then
    rm "$UNFINISHED" # pip ended by itself, for example without a network: the earlier install still works
    failed "pip could not install ddp_ft[$extras]"
  fi
  for extra in ${extras//,/ }; do
    fingerprint >"$VENV/.ddp_ft-$extra"
  done
  rm "$UNFINISHED"
  say "Installed in $((SECONDS - start)) s."
}

if [[ ${1:-} == -h || $# != 1 ]]; then
  usage
  exit $(($# == 1 ? 0 : 2))
fi
[[ $1 =~ ^[a-z]+(,[a-z]+)*$ ]] || die "'$1' is no list of extras, such as test or demo."
if [[ -n ${DDP_FT_PYTHON:-} ]]; then
  say "Using $DDP_FT_PYTHON as it is; nothing is installed."
  exit 0
fi
is_installed "$1" && exit 0

mkdir -p "$ROOT/.cache"
LOG=$ROOT/.cache/setup.log
# One set-up at a time; a pip that outlives this script keeps the lock until it ends.
exec 9>"$ROOT/.cache/setup.lock"
cd "$ROOT"
if command -v flock >/dev/null && ! flock -n 9; then
  say "Another set-up of this clone is under way; waiting for it ..."
  flock 9
fi
is_installed "$1" || install "$1"
