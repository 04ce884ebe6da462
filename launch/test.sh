#!/usr/bin/env bash
# Usage: launch/test.sh [--slow] [PYTEST_ARGUMENTS...]
#
# All checks: ruff (lint, format), mypy, import-linter, then pytest. The first start makes .venv.
# --slow adds the long matrices. Examples:
#
#   launch/test.sh
#   launch/test.sh tests/launch -k quoting
#   launch/test.sh -n 0 --pdb                 # in one process, for the debugger
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ ${1:-} == -h ]]; then
  usage
  exit 0
fi
selection=(-m 'not slow')
arguments=()
for argument in "$@"; do
  if [[ $argument == --slow ]]; then selection=(); else arguments+=("$argument"); fi
done

"$ROOT/launch/setup.sh" test
choose_python
cd "$ROOT"
# A multi-process test already uses several processes: more threads would compete for the cores, and the number of
# threads changes the bits that some tests compare.
export OMP_NUM_THREADS=1

failed=()
check() {
  local name=$1
  shift
  say "== $name"
  "$PYTHON_RUN" "$@" || failed+=("$name")
}
check 'ruff check' -m ruff check --quiet .
check 'ruff format --check' -m ruff format --check --quiet .
check mypy -m mypy
check lint-imports -c 'from importlinter.cli import lint_imports_command as main; main()'
if ((${#failed[@]})); then
  say "failed: $(IFS=,; echo "${failed[*]}")"
  exit 1
fi
say "== pytest"

# Some tests mostly wait, so one more at a time than there are cores is faster; more than four slow each other down.
# pytest's last line is this script's last line.
cores=$(usable_cores)
# Tests of one xdist_group, such as those of one Slurm cluster, run in one process.
exec "$PYTHON_RUN" -m pytest -n $((cores < 4 ? cores + 1 : 4)) --dist loadgroup --durations=25 --durations-min=1 \
  "${selection[@]}" "${arguments[@]}"
