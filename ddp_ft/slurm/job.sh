# What every batch script of ddp_ft does on the first node of its job. sbatch ships one file, so the scripts get this
# text from the package (`python -m ddp_ft.cli.slurm_job script`) and evaluate it. It needs bash and Slurm's commands;
# python may be a wrapper that enters a container, since nothing of Slurm is called from there.
# shellcheck shell=bash

ddp_ft_say() { printf '%(%H:%M:%S)T ddp_ft: %s\n' -1 "$*" >&2; }

ddp_ft_fail() {
  ddp_ft_say "error: $*"
  exit 2
}

# KIND ARGUMENTS...: one start of the job, from the check of its arguments to its exit code.
ddp_ft_job() {
  local kind=$1 stop_file earliest asked='' code=0
  shift
  ddp_ft_arguments "$kind" "$@"
  if [[ $RUN_DIR != /* ]]; then # --help
    printf '%s\n' "$RUN_DIR"
    exit 0
  fi
  ddp_ft_check "$kind"

  stop_file=$RUN_DIR/.stop-$JOB
  rm -f "$stop_file" # that of the start before
  export DDP_FT_STOP_FILE=$stop_file
  earliest=$("$PYTHON" -m ddp_ft.cli.slurm_job begin "$RUN_DIR" "$JOB") || exit
  # Not CONT, which Slurm sends along: bash would run only one of two traps that are due together.
  trap 'ddp_ft_ask USR2 "$earliest"' USR2
  trap 'ddp_ft_ask USR1 "$earliest"' USR1 # of sbatch --signal=B:USR1@SECONDS
  trap 'ddp_ft_ask TERM 0' TERM
  [[ -z ${ddp_ft_warned:-} ]] || ddp_ft_ask USR2 "$earliest" # before there was a run folder to note it in
  ddp_ft_say "start ${SLURM_RESTART_COUNT:-0} of job $JOB in $RUN_DIR"
  ddp_ft_train </dev/null &
  ddp_ft_wait $! || code=$?
  ddp_ft_leave "$code" "$asked"
}

# Sets ARGS, what train gets, and RUN_DIR. A mistake in them ends the job here, with one message.
ddp_ft_arguments() {
  local kind=$1 line=()
  shift
  ARGS=("$@")
  if [[ $kind == preemptible ]]; then
    ARGS=(--set checkpoint.every_minutes=5 "$@") # some sites kill without a warning; the user's own setting wins
  elif [[ $kind == array ]]; then
    [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] || ddp_ft_fail "not an array: submit it with sbatch --array=1-N."
    [[ $# -ge 1 && $1 != -* ]] || ddp_ft_fail "the file of runs must be the first argument."
    mapfile -d '' -t line < <("$PYTHON" -m ddp_ft.cli.slurm_job array "$1" "$SLURM_ARRAY_TASK_ID")
    wait $! || exit
    ARGS=("${@:2}" "${line[@]}")
  fi
  RUN_DIR=$("$PYTHON" -m ddp_ft.train "${ARGS[@]}" --print-run-dir) || exit
  if [[ $kind == array ]] && ! printf '%s\n' "${line[@]}" | grep -qE '^--run-dir(=|$)'; then
    RUN_DIR+=-$SLURM_ARRAY_TASK_ID # no two runs in one folder
    ARGS+=(--run-dir "$RUN_DIR")
  fi
}

ddp_ft_check() { # KIND
  JOB=${SLURM_JOB_ID:-$$} NODES=${SLURM_JOB_NUM_NODES:-1}
  if [[ $1 == single_node && $NODES != 1 ]]; then
    ddp_ft_fail "single_node.sbatch on $NODES nodes: submit it with --nodes=1, or use multi_node.sbatch."
  fi
  [[ $NODES == 1 ]] || command -v srun >/dev/null || ddp_ft_fail "a job on $NODES nodes needs srun, which is not there."
  [[ ${DDP_FT_REQUEUE:=requeue} =~ ^(requeue|exit)$ ]] || ddp_ft_fail "DDP_FT_REQUEUE='$DDP_FT_REQUEUE' is neither requeue nor exit."
  [[ ${DDP_FT_MAX_REQUEUES:=100} =~ ^[0-9]+$ ]] || ddp_ft_fail "DDP_FT_MAX_REQUEUES='$DDP_FT_MAX_REQUEUES' is not a number."
}

# Becomes one shielded torchrun a node. Without srun, as inside a container, it is started right here. `exec`, since a
# shell in between would die of the TERM that Slurm sends to all processes of a job, and srun would go on alone.
ddp_ft_train() {
  local step=() meet=()
  if command -v srun >/dev/null && [[ -n ${SLURM_JOB_ID:-} ]]; then
    # One task with all cores of the node, however the job's own tasks were counted: srun does not inherit the
    # number of cores (since Slurm 22.05), and a task without it gets one.
    step=(env -u SLURM_NTASKS -u SLURM_NPROCS -u SLURM_NTASKS_PER_NODE -u SLURM_GPUS_PER_TASK -u SLURM_CPUS_PER_TASK -u SLURM_TRES_PER_TASK
      srun "--nodes=$NODES" "--ntasks=$NODES" --ntasks-per-node=1 "--cpus-per-task=$(ddp_ft_cores)" --kill-on-bad-exit=1)
    # GPUs that were asked for by task are the node's here; else the step would get one task's.
    [[ -z ${SLURM_GPUS_PER_TASK:-} ]] || step+=("--gpus-per-node=$SLURM_GPUS_ON_NODE")
    # shellcheck disable=SC2206 # several options in one variable
    step+=(${DDP_FT_SRUN_OPTIONS:-})
  fi
  if ((NODES > 1)); then
    meet=(--rendezvous "$("$PYTHON" -m ddp_ft.cli.slurm_job rendezvous "$SLURM_JOB_NODELIST" "$SLURM_JOB_ID")") || return 2
  fi
  exec "${step[@]}" "$PYTHON" -m ddp_ft.cli.node --nodes "$NODES" "${meet[@]}" --job "$JOB.${SLURM_RESTART_COUNT:-0}" -- "${ARGS[@]}"
}

# The cores that the job has on each node; on the poorest, where they differ: "8(x2),4" -> 4.
ddp_ft_cores() {
  tr , '\n' <<<"${SLURM_JOB_CPUS_PER_NODE:-1}" | sed 's/(.*//' | sort -n | head -n 1
}

# A signal to this script becomes a line of the stop file, at once or, for a warning, not before EARLIEST.
ddp_ft_ask() { # SIGNAL EARLIEST
  local hold=$(($2 - $(printf '%(%s)T' -1)))
  asked+=" $1"
  if ((hold <= 0)); then
    mkdir -p "$RUN_DIR" && echo "job $1" >>"$DDP_FT_STOP_FILE"
  else
    ddp_ft_say "warned of the end of the time; training for $hold s more"
    (sleep "$hold" && echo "job $1" >>"$DDP_FT_STOP_FILE") &
  fi
}

# The exit code of a child: `wait` returns for each signal, also long before the child ends.
ddp_ft_wait() { # PID
  local code=0
  while wait "$1" || code=$?; ((code > 128)) && kill -0 "$1" 2>/dev/null; do code=0; done
  return "$code"
}

ddp_ft_leave() { # CODE ASKED
  local reason='' verdict task=$JOB
  # TERM comes to a cancelled job, and to one whose time is over; the state is COMPLETING for both.
  [[ $2 != *TERM* ]] || reason=$(ddp_ft_reason)
  verdict=$("$PYTHON" -m ddp_ft.cli.slurm_job verdict "$RUN_DIR" "$JOB" --code "$1" --stop-file "$DDP_FT_STOP_FILE" \
    --reason "$reason" --restarts "${SLURM_RESTART_COUNT:-0}" --most-restarts "$DDP_FT_MAX_REQUEUES") || exit 1
  rm -f "$DDP_FT_STOP_FILE"
  if [[ $verdict == requeue* && $DDP_FT_REQUEUE == requeue && -n ${SLURM_JOB_ID:-} ]]; then
    # The last task of an array has the array's own number as its job id, which stands for all tasks.
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    if command -v scontrol >/dev/null && scontrol requeue "$task"; then
      ddp_ft_say "requeued"
      exit 0
    fi
    ddp_ft_say "could not be requeued"
  fi
  exit "${verdict#* }"
}

ddp_ft_reason() {
  command -v scontrol >/dev/null || return 0
  scontrol show job --oneliner "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/.*[[:space:]]Reason=\([A-Za-z]*\).*/\1/p' | head -n 1
}
