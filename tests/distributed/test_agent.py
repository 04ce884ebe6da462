"""The elastic agent in a thread: real ranks, of a probe in place of train."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ddp_ft.distributed.agent import run_ranks
from ddp_ft.distributed.processes import Meeting, Outcome

PROBE = """
import os, pathlib, signal, sys, time
folder, rank = pathlib.Path(sys.argv[1]), os.environ["RANK"]
asked = []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
(folder / f"{rank}-of-{os.environ['WORLD_SIZE']}").write_text(" ".join(sys.argv[2:]))
while not asked and "wait" in sys.argv and not (folder / "stop").exists():
    time.sleep(0.02)
if "fail" in sys.argv and rank == "1":
    print("rank 1 prints why", file=sys.stderr)
    sys.exit(int(sys.argv[-1]))
if "killed" in sys.argv and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if asked:
    (folder / f"{rank}-asked").touch()
"""


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which each rank of `probe` leaves its name and its words."""
    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "found").mkdir()
    return tmp_path / "found"


def found(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def start(folder: Path, *words: str, processes: int = 2, on_signal=None) -> Outcome:
    return run_ranks("probe", [str(folder), *words], processes, Meeting(), on_signal)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_ranks_get_the_words_as_they_are(probe: Path, tmp_path: Path, monkeypatch, capfd, processes: int) -> None:
    (tmp_path / "t").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    assert start(probe, "my pets", "a.b=[1, 2]", processes=processes) == Outcome(0)
    assert found(probe) == {f"{rank}-of-{processes}" for rank in range(processes)}
    assert (probe / f"0-of-{processes}").read_text() == "my pets a.b=[1, 2]"
    assert capfd.readouterr() == ("", "") and not list((tmp_path / "t").iterdir())


@pytest.mark.parametrize("code", [1, 2, 130])
def test_the_code_is_that_of_the_rank_that_failed_and_nothing_is_added(probe: Path, capfd, code: int) -> None:
    assert start(probe, "fail", str(code)) == Outcome(code)
    assert capfd.readouterr() == ("", "rank 1 prints why\n")


def test_a_rank_that_could_not_print(probe: Path) -> None:
    outcome = start(probe, "killed")
    assert (outcome.code, outcome.message) == (1, "Rank 1 was ended by SIGKILL.") and "memory" in outcome.hint


def send_when(is_time, number: signal.Signals) -> None:
    """Send this process a signal as soon as that holds."""

    def wait() -> None:
        while not is_time():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def test_a_signal_is_passed_on_and_the_ranks_decide(probe: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    send_when(lambda: len(found(probe)) == 2, signal.SIGTERM)
    assert start(probe, "wait") == Outcome(0)
    assert {"0-asked", "1-asked"} <= found(probe) and signal.getsignal(signal.SIGTERM) == handler


def test_a_signal_reaches_all_where_the_agent_has_the_number_of_one_alone(probe: Path, monkeypatch) -> None:
    """It looks up the host's name after each, which takes as long as name servers take."""
    monkeypatch.setattr(socket, "getfqdn", lambda *_: time.sleep(0.5) or "localhost")
    send_when(lambda: len(found(probe)) == 2, signal.SIGTERM)
    assert start(probe, "wait") == Outcome(0)
    assert {"0-asked", "1-asked"} <= found(probe)


def test_a_signal_that_ends_the_ranks_ends_it_without_a_message(probe: Path) -> None:
    send_when(lambda: len(found(probe)) == 2, signal.SIGUSR2)
    assert start(probe, "wait") == Outcome(128 + signal.SIGUSR2)


def test_a_signal_may_be_for_somebody_else(probe: Path) -> None:
    heard = []

    def on_signal(number: signal.Signals) -> None:
        heard.append(number)
        (probe / "stop").touch()

    send_when(lambda: len(found(probe)) == 2, signal.SIGTERM)
    assert start(probe, "wait", on_signal=on_signal) == Outcome(0)
    assert heard == [signal.SIGTERM] and "0-asked" not in found(probe)


def test_what_nohup_ignores_stays_ignored(probe: Path) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a process

    def hang_up() -> bool:
        if len(found(probe)) == 2:
            os.kill(os.getpid(), signal.SIGHUP)
            return True
        return False

    try:
        send_when(hang_up, signal.SIGTERM)
        assert start(probe, "wait") == Outcome(0)
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert {"0-asked", "1-asked"} <= found(probe)


def test_a_machine_whose_name_nobody_knows(probe: Path, monkeypatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda *_: "nobody-knows.invalid")
    assert start(probe) == Outcome(0)


NODE = """
import sys
from ddp_ft.distributed.agent import run_ranks
from ddp_ft.distributed.processes import Meeting
print("ready", flush=True)
sys.exit(run_ranks("probe", sys.argv[2:], 1, Meeting(2, 2, sys.argv[1], "job", None)).code)
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def node(endpoint: str, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", NODE, endpoint, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_nodes_meet(probe: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    nodes = [node(endpoint, probe) for _ in range(2)]
    assert [each.communicate(timeout=100)[0] for each in nodes] == ["ready\n"] * 2
    assert [each.returncode for each in nodes] == [0, 0] and found(probe) == {"0-of-2", "1-of-2"}


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for it."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def test_a_signal_ends_the_wait_for_other_nodes(probe: Path) -> None:
    alone = node(f"127.0.0.1:{free_port()}", probe)
    assert alone.stdout is not None and alone.stdout.readline() == "ready\n"
    while not handles(alone.pid, signal.SIGTERM):
        time.sleep(0.01)
    alone.terminate()
    assert alone.communicate(timeout=30)[0] == "" and alone.returncode == 128 + signal.SIGTERM
