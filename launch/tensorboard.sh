#!/usr/bin/env bash
# Usage: launch/tensorboard.sh [FOLDER] [TENSORBOARD_OPTIONS...]
#
# Serves the curves of all runs below FOLDER (default: runs) only on this machine, and prints the ssh command that
# brings the page to your own machine. Ctrl-C ends it.
#
#   launch/tensorboard.sh runs
#
# Environment:
#   PORT              default 6006; if it is taken, the next free one
#   DDP_FT_PYTHON     interpreter; else the .venv of this clone, else python3 of the PATH
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  usage
  exit 0
fi
FOLDER=runs
if [[ $# -gt 0 && $1 != -* ]]; then
  FOLDER=$1
  shift
fi
[[ -d $FOLDER ]] || die "there is no folder '$FOLDER'; give the one that holds your run folders."
choose_python
# TensorBoard itself would choose the next free port too late for the lines below.
PORT=$("$PYTHON_RUN" -c '
import socket, sys
for port in range(int(sys.argv[1]), int(sys.argv[1]) + 100):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        print(port)
        break
' "${PORT:-6006}")
[[ -n $PORT ]] || die "no port is free; set PORT to another one."
say "http://127.0.0.1:$PORT/"
say "From another machine: ssh -N -L $PORT:127.0.0.1:$PORT ${USER:-$(id -un)}@$(hostname)"
exec "$PYTHON_RUN" -m tensorboard.main --logdir "$FOLDER" --host 127.0.0.1 --port "$PORT" "$@"
