"""launch/tensorboard.sh: a page for this machine alone, on a port that is free."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "tensorboard.sh"
ENVIRONMENT = {**os.environ, "DDP_FT_PYTHON": sys.executable}


def test_it_serves_the_runs_and_says_how_to_reach_it(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "runs/a")) as writer:
        writer.add_scalar("2_loss/train", 1.0, 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [str(SCRIPT), str(tmp_path / "runs"), "--reload_interval", "1"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**ENVIRONMENT, "PORT": str(port)})
        try:
            assert process.stderr is not None
            address, ssh = process.stderr.readline().strip(), process.stderr.readline()
            chosen = int(address.rstrip("/").rpartition(":")[2])
            assert chosen != port and f"ssh -N -L {chosen}:127.0.0.1:{chosen} " in ssh
            assert '"a"' in _asked(f"{address}data/runs")
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


def _asked(address: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answer, deadline = "[]", time.monotonic() + 60
    while '"a"' not in answer and time.monotonic() < deadline:
        time.sleep(0.3)
        try:
            answer = opener.open(address, timeout=10).read().decode()
        except OSError:
            continue
    return answer


@pytest.mark.parametrize(("arguments", "code", "text"), [(["nowhere"], 2, "no folder 'nowhere'"), (["-h"], 0, "Usage")])
def test_its_help_and_its_mistakes(tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == code and text in done.stdout + done.stderr
