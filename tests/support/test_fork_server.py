"""The fork server has what its forks need, and nothing that a fork would break."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.support.commands import Command, run_module
from tests.support.fork_server import context, fork


def look(sender):
    server = Path(f"/proc/{os.getppid()}/task")
    import torch

    is_lost = torch.cuda._is_in_bad_fork()
    sender.send(("ddp_ft.run" in sys.modules, len(list(server.iterdir())), threading.active_count(), is_lost))


def test_it_has_imported_all_and_started_no_thread_and_left_cuda_alone():
    receiver, sender = context.Pipe(duplex=False)
    process = fork(look, sender)
    assert receiver.recv() == (True, 1, 1, False)
    process.join()


def test_a_command_ends_as_a_new_interpreter_would(tmp_path):
    done = run_module("ddp_ft.train", "--nonsense", cwd=tmp_path)
    assert done.returncode == 2 and "--nonsense" in done.stderr and not done.stdout
    done = run_module("platform", "--nonaliased", env={"PYTHONWARNINGS": "error"})
    assert done.returncode == 0 and "Linux" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_ends_by_a_signal(number):
    command = Command("tests.support.sleeps", [])
    assert command.poll() is None
    command.send_signal(number)
    assert command.wait(20) == -number == command.poll()
