#!/usr/bin/env bash
# Usage: launch/multi_node.sh NNODES HEAD_ADDRESS[:PORT] TRAIN_ARGUMENTS...
#
# Fine-tunes on several machines: run the same command on each. NNODES is their number, or MIN:MAX for an elastic job,
# which starts with MIN and admits others later. HEAD_ADDRESS is the name of one that all can reach (port 29500 unless
# given; an IPv6 address in brackets). The run folder must be on a disk that all nodes share.
#
#   launch/multi_node.sh 2 node01 --data /shared/pets --model timm/convnext_tiny.in12k_ft_in1k
#
# Environment:
#   RDZV_ID           name of the job, the same on all nodes; default: SLURM_JOB_ID, else the head's address
#   MAX_RESTARTS      how often the workers start again after a failure (default 0); an elastic job needs it to
#                     survive the loss of a node
#   NPROC_PER_NODE, OMP_NUM_THREADS, DDP_FT_PYTHON   as in single_node.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

wrong_usage() {
  usage >&2
  die "$*"
}

if [[ ${1:-} == -h ]]; then
  usage
  exit 0
fi
choose_python
if [[ " $* " == *" --help "* ]]; then
  exec "$PYTHON_RUN" -m ddp_ft.train --help # once, not once a process
fi
(($# >= 2)) || wrong_usage "NNODES and HEAD_ADDRESS are both needed."

nnodes=$1 head=$2
shift 2
[[ $nnodes =~ ^[1-9][0-9]{0,4}(:[1-9][0-9]{0,4})?$ ]] || wrong_usage "NNODES '$nnodes' is neither a number nor MIN:MAX."
((${nnodes%:*} <= ${nnodes#*:})) || wrong_usage "NNODES '$nnodes': MIN is above MAX."

if [[ ! $head =~ ^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(:[0-9]+)?$ ]]; then
  wrong_usage "HEAD_ADDRESS '$head' is neither NAME nor NAME:PORT (an IPv6 address goes in brackets)."
fi
[[ -n ${BASH_REMATCH[2]} ]] || head=$head:29500

: "${MAX_RESTARTS:=0}"
[[ $MAX_RESTARTS =~ ^[0-9]+$ ]] || die "MAX_RESTARTS='$MAX_RESTARTS' is not a number."

exec "$PYTHON_RUN" -m ddp_ft.cli.node --nodes "$nnodes" --rendezvous "$head" \
  --job "${RDZV_ID:-${SLURM_JOB_ID:-ddp_ft-$head}}" --restarts "$MAX_RESTARTS" -- "$@"
