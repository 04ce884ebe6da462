#!/usr/bin/env bash
# Usage: launch/gpu.sh [--minutes M] [--device cpu] [--smoke] [--only WORDS]
#
# The first thing to run on a new GPU machine: does all of ddp_ft work there, and how fast? One line a check (passed,
# failed and why, skipped and why, seconds), the worst again at the end; then the benchmarks. No network, M minutes (8).
# Trains in bf16, fp16 and fp32, alone and with NCCL, on as many GPUs as there are; kills, stops and resumes; runs out of
# memory; compiles; predicts and exports. docs/gpu.md says what to do about what fails.
#
#   --minutes M       time for all of it, a whole number; 60 % of it for the checks
#   --device cpu      the same on a CPU, as far as that has it
#   --smoke           leave out what takes long there, and the benchmarks
#   --only WORDS      the checks that pytest -k WORDS selects, without the benchmarks
#
# Needs the packages of the extra `test` or, without a network, pytest, pytest-timeout, hypothesis and scikit-learn.
# All output is in $OUT, or in .cache/gpu. DDP_FT_PYTHON names the interpreter; else .venv, else python3.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Of the minutes, this share is for the checks; what they leave is for the benchmarks.
CHECKS_PERCENT=60
device=cuda minutes=8 smoke='' only=()
while (($#)); do
  case $1 in
    --device | --minutes | --only)
      (($# > 1)) || die "$1 needs a value; see --help."
      case $1 in --device) device=$2 ;; --minutes) minutes=$2 ;; --only) only=(-k "$2") ;; esac
      shift
      ;;
    --smoke) smoke=1 ;;
    -h | --help) usage; exit 0 ;;
    *) die "unknown option $1; see --help." ;;
  esac
  shift
done
[[ $device == cuda || $device == cpu ]] || die "--device '$device' is neither cuda nor cpu."
[[ $minutes =~ ^[1-9][0-9]*$ ]] || die "--minutes '$minutes' is no whole number of minutes."

choose_python
mkdir -p "${OUT:=$ROOT/.cache/gpu}" || die "cannot write to $OUT: set OUT to a folder for the logs."
OUT=$(cd "$OUT" && pwd -P)
cd "$ROOT"
export OUT PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo 'no nvidia-smi'
  "$PYTHON_RUN" - "$device" <<'END'
import sys, torch
has = torch.cuda.is_available()
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}, usable GPUs: {torch.cuda.device_count()}",
      f", NCCL {torch.cuda.nccl.version()}, cuDNN {torch.backends.cudnn.version()}" if has else "", sep="")
if sys.argv[1] == "cuda" and not has:
    sys.exit("error: torch finds no CUDA device. `python -m ddp_ft.doctor` checks the driver and torch's build; on a CPU: --device cpu --smoke.")
END
}

# Checks that begin later than their share of the time are skipped; one that hangs ends after its own limit.
checks() {
  local files=(tests/gpu) seconds=$((minutes * 60 * CHECKS_PERCENT / 100))
  # Those of single modules have nothing to say about a CPU.
  [[ $device == cpu ]] || mapfile -t -O 1 files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | grep -v '^tests/gpu/' | sort)
  timeout --kill-after=20 $((seconds + 150)) "$PYTHON_RUN" -m pytest -n 0 -m gpu -p no:cacheprovider -W default \
    -p tests.gpu.lines --lines 3 --device "$device" --seconds "$seconds" ${smoke:+--smoke} "${only[@]}" \
    "${files[@]}" 3>&1 >"$OUT/pytest.txt" 2>&1
}

{
  machine || exit 2
  checks
  code=$?
  if ((code == 5)); then
    echo "no check is selected${only[1]:+ by --only '${only[1]}'}"
  elif ((code > 1)); then
    echo "pytest ended with $code:"
    tail -n 5 "$OUT/pytest.txt"
  fi
  if [[ -z $smoke ]] && ((${#only[@]} == 0)); then
    left=$((minutes - SECONDS / 60))
    PYTHON=$PYTHON_RUN OUT=$OUT/benchmarks benchmarks/gpu.sh --device "$device" --minutes $((left > 1 ? left : 1)) || code=1
  fi
  echo "$((SECONDS)) s in all; what the checks printed: $OUT/pytest.txt"
  exit $((code > 0))
} 2>&1 | tee "$OUT/log.txt"
