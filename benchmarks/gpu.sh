#!/usr/bin/env bash
# Usage: benchmarks/gpu.sh [--device cpu] [--smoke] [--minutes M]
#
# Everything that is worth measuring on a machine with a GPU, in one call of under M minutes (9): for three models at
# 224 px in bf16 the limit, ddp_ft.train from JPEG files, plain PyTorch and what other tools are installed, and each
# stage. No network. Tables and JSON go to $OUT, or to .cache/gpu. launch/gpu.sh calls it, after checks of all else.
# PYTHON names the interpreter (python3).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-.cache/gpu}
device=cuda minutes=9 smoke=()
while (($#)); do
  case $1 in
    --device) device=$2; shift ;;
    --minutes) minutes=$2; shift ;;
    --smoke) smoke=(--smoke) ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "Unknown option $1; see --help." >&2; exit 2 ;;
  esac
  shift
done
mkdir -p "$OUT"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
end=$((SECONDS + minutes * 60 - 40))
left() { echo $((end - SECONDS)); }

# measure MODEL CONTENDERS SECONDS: at most so many of the usual 9 minutes' seconds, and no more than are left
measure() {
  local model=$1 contenders=$2 seconds=$(($3 * minutes / 9))
  (("$(left)" < seconds)) && seconds=$(left)
  if ((seconds < 30)); then echo "== $model: no time left"; return; fi
  echo "== $model, at most $seconds s"
  # A measurement that hangs must not take the others' time.
  timeout --kill-after=20 $((seconds + 40)) "$PYTHON" -m benchmarks.throughput --model "$model" --device "$device" \
    --contenders "$contenders" --processes 1 --image-size 224 --precision auto --batch 128 --images 1280 \
    --copies 16 --rounds 2 --minutes "$(awk "BEGIN {print $seconds / 60}")" --output "$OUT/$model" "${smoke[@]}"
}

{
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo 'no nvidia-smi'
  all=limit,ours,torch_best,torch,timm,lightning_best,transformers_best,accelerate_best
  few=limit,ours,torch_best
  if ((${#smoke[@]})); then all=$few few=limit,ours; fi
  measure resnet50 $all 220
  measure vit_base_patch16_224 $few 110
  ((${#smoke[@]})) || measure convnext_tiny $few 110 # on the way of the one before
  echo "done after $SECONDS s"
} 2>&1 | tee "$OUT/log.txt"
