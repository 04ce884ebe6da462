#!/usr/bin/env bash
# Usage: launch/single_node.sh TRAIN_ARGUMENTS...
#
# Fine-tunes on all of this machine: one process per GPU that CUDA_VISIBLE_DEVICES leaves, or, without GPUs (and with
# --device cpu), up to 4 processes that share the cores. All arguments go to `ddp_ft.train`; --help shows its options.
#
#   launch/single_node.sh --data ~/pets --model timm/convnext_tiny.in12k_ft_in1k
#
# Environment, which overrides the choices of the script:
#   NPROC_PER_NODE    processes
#   OMP_NUM_THREADS   threads of each process
#   DDP_FT_PYTHON     interpreter; else the .venv of this clone, else python3 of the PATH
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ ${1:-} == -h ]]; then
  usage
  exit 0
fi
choose_python
exec "$PYTHON_RUN" -m ddp_ft.train --processes "${NPROC_PER_NODE:-auto}" "$@"
