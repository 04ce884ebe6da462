"""A service beside the loop: what it gets, and what becomes of a run whose service is slow, fails or hangs."""

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest

from ddp_ft.errors import UserError
from ddp_ft.trackers.services import background, registry
from ddp_ft.trackers.services.background import Background
from ddp_ft.trackers.services.base import Start
from ddp_ft.trackers.services.registry import service_names
from tests.support import recording
from tests.support.fork_server import PATIENCE
from tests.support.recording import Failing, Recorder, Waiting
from tests.support.runs import column, train_here

# A module that is there, in the place of a service's library.
NAME = "json"


@pytest.fixture
def serve(tmp_path, monkeypatch):
    def begin(kind, log=lambda text: None):
        monkeypatch.setitem(registry.SERVICES, NAME, f"{recording.__file__}:{kind.__name__}")
        return Background(NAME, Start(tmp_path, {}, {}, ()), log)

    return begin


def told(folder):
    file = folder / "told.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_until(is_so):
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def process_of_service():
    """The only process of a service that this one has started. Its command line is empty for a moment after exec."""
    wait_until(lambda: any(map(is_service, psutil.Process().children())))
    [found] = filter(is_service, psutil.Process().children())
    return found


def is_service(child):
    try:
        return "services.host" in " ".join(child.cmdline())
    except psutil.Error:  # it has ended
        return False


def bytes_in_pipe():
    """How much the service has still to read."""
    with open(f"/proc/{process_of_service().pid}/fd/0", "rb", buffering=0) as pipe:  # noqa: PTH123
        return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]


def test_a_service_gets_all_in_order(serve, tmp_path, capfd):
    said = []
    tracker = serve(Recorder, said.append)
    tracker.log("train", 1, 0.5, {"loss": 2.0})
    tracker.image("wrong", 1, b"png")
    tracker.warn(1, "look")
    tracker.sync()
    tracker.finish({}, {"val/loss": 1.0})
    tracker.close()
    assert told(tmp_path) == [
        ["start", 0, None], ["log", "train", 1, 2.0], ["image", "wrong", 1, 3],
        ["warn", 1, "look"], ["finish", {"val/loss": 1.0}], ["close"],
    ]  # fmt: skip
    assert said == ["the recorder is here"] and capfd.readouterr().err == ""


def test_one_that_fails_is_told_of_once_and_left_out(serve, capfd):
    tracker = serve(Failing)
    for step in range(3):
        tracker.log("train", step, 0.5, {"loss": 2.0})
    printed = []
    wait_until(lambda: printed.append(capfd.readouterr().err) or any(printed))
    tracker.log("train", 4, 0.5, {"loss": 2.0})
    tracker.close()
    error = "".join(printed) + capfd.readouterr().err
    assert error.startswith("Warning: json ") and error.endswith(" ConnectionError: no route\n")
    assert error.count("\n") == 1


def test_one_that_cannot_follow_loses_images_first(serve, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(background, "MOST_WAITING", 6)
    monkeypatch.setattr(background, "MOST_IMAGES", 3)
    tracker = serve(Waiting)
    tracker.log("train", 0, 0.5, {"loss": 2.0})
    wait_until(lambda: ["log", "train", 0, 2.0] in told(tmp_path))
    large = b"0" * 400_000  # more than a pipe holds: the first is on its way for good
    tracker.image("first", 0, large)
    wait_until(lambda: bytes_in_pipe() > 40_000)
    for step in range(1, 5):
        tracker.image("p", step, large[:9])
    for step in range(1, 8):
        tracker.log("train", step, 0.5, {"loss": 2.0})
    (tmp_path / "go").touch()
    tracker.finish({}, {})
    tracker.close()
    assert [what[:3] for what in told(tmp_path)[2:]] == [
        ["image", "first", 0],
        *(["log", "train", step] for step in range(1, 7)),
        ["finish", {}],
        ["close"],
    ]
    assert capfd.readouterr().err.count("Warning: json ") == 1


@pytest.mark.parametrize(("is_done", "constant"), [(True, "CLOSE_SECONDS"), (False, "STOP_SECONDS")])
def test_closing_waits_for_a_bounded_time(serve, monkeypatch, capfd, is_done, constant):
    monkeypatch.setattr(background, constant, 0.5)
    tracker = serve(Waiting)
    tracker.log("train", 0, 0.5, {"loss": 2.0})
    if is_done:
        tracker.finish({}, {})
    process = process_of_service()
    tracker.close()
    assert "within 0.5 s" in capfd.readouterr().err
    assert not process.is_running()


def test_it_hands_on_what_it_has_when_the_run_is_killed(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from ddp_ft.trackers.services import base, registry\n"
        "from ddp_ft.trackers.services.background import Background\n"
        f"registry.SERVICES['json'] = '{recording.__file__}:Recorder'\n"
        f"tracker = Background('json', base.Start(Path({str(tmp_path)!r}), {{}}, {{}}, ()), print)\n"
        "tracker.log('train', 1, 0.5, {'loss': 2.0})\n"
        f"while not os.path.exists({str(tmp_path / 'told.jsonl')!r}): pass\n"
        "import time; time.sleep(0.5)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(registry.__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=60, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until(lambda: ["close"] in told(tmp_path))
    assert told(tmp_path)[1:] == [["log", "train", 1, 2.0], ["close"]]


def test_a_run_feeds_its_services(shapes, tmp_path, monkeypatch, capfd):
    """And one that fails changes nothing of the result."""
    train_here(shapes, tmp_path / "alone")
    for kind in (Failing, Recorder):
        monkeypatch.setitem(registry.SERVICES, NAME, f"{recording.__file__}:{kind.__name__}")
        run = tmp_path / kind.__name__
        assert train_here(shapes, run, "--track", NAME) == 0
        assert column(run, "loss") == column(tmp_path / "alone", "loss")
    assert capfd.readouterr().err.count("Warning: json failed") == 1
    rows = told(tmp_path / "Recorder")
    assert rows[0] == ["start", 0, "adamw"] and [row[0] for row in rows[-2:]] == ["finish", "close"]
    assert [row[3] for row in rows if row[:2] == ["log", "train"]] == column(tmp_path / "Recorder", "loss")
    train_here(shapes, tmp_path / "Recorder", "--track", NAME, "--extend", epochs=2)
    assert ["start", 5, "adamw"] in told(tmp_path / "Recorder")  # 4 rows of training, 1 of validation


def test_names_of_services(monkeypatch):
    assert service_names(None) == service_names("") == []
    monkeypatch.setitem(registry.SERVICES, NAME, "somewhere")
    assert service_names(f" {NAME}, {NAME},") == [NAME]
    with pytest.raises(UserError, match=r"no tracker 'mlfow'\.\nDid you mean mlflow"):
        service_names("mlfow")
    monkeypatch.setitem(registry.SERVICES, "no_such_library", "somewhere")
    with pytest.raises(UserError, match=r"pip install 'ddp_ft\[no_such_library\]'"):
        service_names("no_such_library")


def test_a_missing_library_is_told_at_the_start(shapes, tmp_path, monkeypatch):
    monkeypatch.setitem(registry.SERVICES, "no_such_library", "somewhere")
    with pytest.raises(UserError, match="is not installed"):
        train_here(shapes, tmp_path / "r", "--track", "no_such_library")
    assert not (tmp_path / "r").exists()
