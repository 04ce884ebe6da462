"""TensorBoard itself, asked over HTTP, shows one curve after a kill and a second start."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import arguments, column
from tests.system.faults.fault import Fault
from tests.system.faults.forks import ForkedJob, run_forked

STEPS, KILLED_AT, SAVED_AT = 12, 11, 9


def options(data: Path, run: Path) -> list[str]:
    return arguments(data, run, "--set", "checkpoint.every_steps=9", "--set", "eval.every_epochs=3", epochs=3)


@contextmanager
def served(logdir: Path, load_fast: str) -> Iterator["Asked"]:
    """TensorBoard, to be asked."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--host", "127.0.0.1", "--port", "0"]
    log = logdir.parent / f"tensorboard_{load_fast}.txt"
    with log.open("wb") as stream:
        more = ["--load_fast", load_fast, "--reload_interval", "1"]
        process = subprocess.Popen([*map(str, command), *more], stdout=stream, stderr=stream)
    try:
        yield Asked(_address(process, log))
    finally:
        process.terminate()
        process.wait()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    for _ in range(600):
        if found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text()):
            return found.group()
        if process.poll() is not None:
            pytest.skip(f"tensorboard does not start here: {log.read_text()[-500:]}")
        time.sleep(0.1)
    raise AssertionError(f"tensorboard is not there: {log.read_text()[-500:]}")


@dataclass
class Asked:
    """A server, which is called with what is asked of it."""

    address: str

    def __call__(self, request: str) -> Any:
        # Without the proxies of the environment: they know nothing of this machine's own address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.address + request, timeout=20) as answer:
            return json.loads(answer.read())


def curve(ask: Callable[[str], Any], tag: str, last: int, seconds: float = 30) -> list[int]:
    """The steps of a curve, in the order served, once its last step is there."""
    steps: list[int] = []
    deadline = time.monotonic() + seconds
    while last not in steps and time.monotonic() < deadline:
        if tag in ask("data/plugin/scalars/tags").get(".", {}):
            query = urllib.parse.urlencode({"run": ".", "tag": tag})
            steps = [point[1] for point in ask(f"data/plugin/scalars/scalars?{query}")]
        time.sleep(0.2)
    return steps


def break_run(data: Path, run: Path) -> None:
    """A run that dies two steps behind its last checkpoint; the rows of these steps are written and shown."""
    fault = Fault(str(run.with_name("fault")), "wait", "train", KILLED_AT + 1)
    job = ForkedJob(1, options(data, run), fault.environment())
    job.wait_for(fault.reached)
    time.sleep(0.5)
    job.signal(signal.SIGKILL)
    assert job.end()[0] == [-signal.SIGKILL]
    assert column(run, "step") == list(range(1, KILLED_AT + 1))


@pytest.mark.parametrize("load_fast", ["true", "false"])
def test_each_step_is_shown_once(shapes, tmp_path, load_fast):
    run = tmp_path / "run"
    break_run(shapes, run)
    codes, said = run_forked(1, options(shapes, run))
    assert codes == [0], said
    with served(run / "tensorboard", load_fast) as ask:
        assert curve(ask, "2_loss/train", STEPS) == list(range(1, STEPS + 1))
        assert curve(ask, "2_loss/val", STEPS) == [STEPS]
        values = [point[2] for point in ask("data/plugin/scalars/scalars?run=.&tag=2_loss%2Ftrain")]
        assert values == pytest.approx(column(run, "loss"), rel=1e-6)


def test_a_server_that_was_there_before_the_kill_shows_each_step_once(shapes, tmp_path):
    """With the fast loader; the other one goes on reading the file that was replaced (docs/reliability.md)."""
    run = tmp_path / "run"
    break_run(shapes, run)
    with served(run / "tensorboard", "true") as ask:
        assert curve(ask, "2_loss/train", SAVED_AT)[:SAVED_AT] == list(range(1, SAVED_AT + 1))
        codes, said = run_forked(1, options(shapes, run))
        assert codes == [0], said
        assert curve(ask, "2_loss/train", STEPS) == list(range(1, STEPS + 1))
        assert curve(ask, "2_loss/val", STEPS) == [STEPS]
