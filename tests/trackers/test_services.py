"""MLflow and Weights & Biases themselves, as far as they work without the internet: the extras `mlflow` and `wandb`."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from PIL import Image

from ddp_ft.config.loading import make_config, to_yaml
from ddp_ft.trackers.console import make_console
from ddp_ft.trackers.fan_out import make_trackers
from ddp_ft.trackers.jsonl import Resumed
from ddp_ft.trackers.services import background
from tests.support.runs import arguments, column, start_process, train_here
from tests.system.faults.fault import Fault
from tests.system.faults.forks import ForkedJob

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("services"),
    # Of MLflow's own use of SQLAlchemy, here where it is read back.
    pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated"),
]
# What runs of these tests must not learn from the machine that they are on.
FOREIGN = ("MLFLOW_", "WANDB_")


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("CLOSE_SECONDS", "STOP_SECONDS"):  # here it is not they that are tested
        monkeypatch.setattr(background, name, 100.0)


def start(run, resume_step, name):
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(to_yaml(make_config({"optim.lr": 0.5, "train.epochs": 7})))
    return make_trackers(run, make_console(False), Resumed(resume_step), name)


def two_starts(run, name):
    """Steps 1 to 4, of which 3 and 4 are run again, and more; with a probe before, and an image."""
    first = start(run, 0, name)
    for step in (1, 2):
        first.log("train", step, 0.0, {"loss": 3.0}, "probe")
    first.log("val", 2, 0.0, {"loss": 3.0}, "probe")
    for step in range(1, 5):
        first.log("train", step, step / 4, {"loss": 2.0 - step / 10, "lr/head": 0.1})
    first.log("val", 4, 1.0, {"loss": 1.5, "accuracy": 0.5})
    service = first.trackers[-1]
    with io.BytesIO() as stream:
        Image.new("RGB", (8, 6), (200, 0, 0)).save(stream, "png")
        image = stream.getvalue()
    service.image("wrong ones", 4, image)
    first.warn(4, "a step was skipped")
    first.close()
    second = start(run, 2, name)
    for step in range(3, 7):
        second.log("train", step, step / 4, {"loss": 2.0 - step / 10, "lr/head": 0.1})
        if step == 4:
            second.log("val", 4, 1.0, {"loss": 1.5, "accuracy": 0.5})
    for step in (4, 6):  # drawn meanwhile; the first one again
        second.trackers[-1].image("wrong ones", step, image)
    second.log("val", 6, 1.5, {"loss": 1.25, "accuracy": 0.75})
    second.finish({"optim.lr": 0.5}, {"val/accuracy": 0.75})
    second.close()


LOSSES = [(step, pytest.approx(2.0 - step / 10)) for step in range(1, 7)]


def mlflow_run(uri):
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(str(uri))
    (run,) = client.search_runs([client.get_experiment_by_name("ddp_ft").experiment_id])

    def curve(name):
        return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]

    return client, run, curve


def test_one_run_of_mlflow_over_two_starts(tmp_path, capfd):
    pytest.importorskip("mlflow")
    (tmp_path / "rüns").mkdir()
    two_starts(tmp_path / "rüns" / "one run", "mlflow")
    assert "Warning" not in capfd.readouterr().err
    client, run, curve = mlflow_run(f"sqlite:///{tmp_path / 'rüns' / 'mlflow.db'}")
    assert curve("loss/train") == LOSSES
    assert curve("quality/val_accuracy") == [(4, 0.5), (6, 0.75)]
    assert curve("probe/loss/train") == [(1, 3.0), (2, 3.0)]
    assert curve("best/val/accuracy") == [(6, 0.75)]
    assert run.data.params["optim.lr"] == "0.5" and run.data.tags["train.epochs"] == "7"
    assert run.data.tags["ddp_ft.run_folder"].endswith("one run") and run.data.tags["warning.4"]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "one run")
    assert [file.path for file in client.list_artifacts(run.info.run_id, "images/wrong ones")] == [
        "images/wrong ones/step_00000004.png",
        "images/wrong ones/step_00000006.png",
    ]


def read_offline(run):
    """The rows, by number, and the names in the summary, of all files of offline starts."""
    from ddp_ft.trackers.services.wandb import _records, read_history

    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    rows, summary = [], {}
    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        content = file.read_bytes()
        rows += [(number, {k: json.loads(v) for k, v in row.items()}) for number, row in read_history(content)]
        for record in map(pb.Record.FromString, _records(content)):
            summary |= {item.key: item.value_json for item in record.summary.update if item.key}
    return rows, summary


def test_one_run_of_wandb_over_two_starts(tmp_path, capfd, monkeypatch):
    pytest.importorskip("wandb")
    run = tmp_path / "one run"
    two_starts(run, "wandb")
    assert "Warning" not in capfd.readouterr().err
    rows, summary = read_offline(run)
    numbers = [number for number, _ in rows]
    assert numbers == sorted(set(numbers))  # in the order in which W&B wants them, none twice
    assert [(row["step"], row["loss/train"]) for _, row in rows if "loss/train" in row] == LOSSES
    assert [(row["step"], row["loss/val"]) for _, row in rows if "loss/val" in row] == [(4, 1.5), (6, 1.25)]
    assert [row["probe/step"] for _, row in rows if "probe/loss/train" in row] == [1, 2]
    assert json.loads(summary["best/val/accuracy"]) == 0.75
    shown = [row for _, row in rows if any(name.startswith("images/wrong ones") for name in row)]
    assert [row["image_step"] for row in shown] == [4, 6]
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/images/wrong ones_*.png"))) == 2
    listed = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run", *map(str, run.glob("wandb/offline-run-*"))],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert listed.returncode == 0 and (listed.stdout + listed.stderr).count("run-") >= 2, listed


def test_wandb_goes_on_behind_what_its_files_have(tmp_path):
    """A crash of the machine leaves a file cut off: the rows that it lacks are sent again, and no others."""
    pytest.importorskip("wandb")
    from ddp_ft.trackers.services.wandb import next_number, read_history

    two_starts(tmp_path / "r", "wandb")
    files = sorted((tmp_path / "r").glob("wandb/offline-run-*/run-*.wandb"))
    run_id = files[0].stem.removeprefix("run-")
    full = next_number(tmp_path / "r", run_id)
    content = files[-1].read_bytes()
    for length in range(0, len(content), 97):
        files[-1].write_bytes(content[:length])
        kept = [number for number, _ in read_history(content[:length])]
        if kept:
            assert next_number(tmp_path / "r", run_id) == kept[-1] + 1 <= full
    files[-1].write_bytes(content[: len(content) // 2])
    start(tmp_path / "r", 6, "wandb").close()
    rows, _ = read_offline(tmp_path / "r")
    assert [row["step"] for _, row in rows if "loss/train" in row] == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """MLflow's own server, with the SQLite file server.db, at a free port of this machine: its address and process."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # starts sooner
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--port", address.partition(":")[2], "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--artifacts-destination", str(tmp_path / "a")),
    ]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 300
    while not _answers(f"http://{address}/health"):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
        time.sleep(0.1)
    yield f"http://{address}", process
    _end(process)


def _answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _end(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(900)
def test_mlflows_server_dies_in_the_middle(server, shapes, tmp_path, monkeypatch):
    """The run ends as it would have; the next start sends what the server's file lacks."""
    address, served = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    run = tmp_path / "r"
    process = start_process(arguments(shapes, run, "--track", "mlflow", epochs=12))
    process.wait_for_output("\nMLflow: run")
    _end(served)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("Warning: mlflow ") == 1
    train_here(shapes, tmp_path / "alone", epochs=12)
    assert column(run, "loss") == column(tmp_path / "alone", "loss")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'server.db'}")
    train_here(shapes, run, "--track", "mlflow", "--extend", epochs=13)
    _, found, curve = mlflow_run(f"sqlite:///{tmp_path / 'server.db'}")
    assert [step for step, _ in curve("loss/train")] == list(range(1, 13 * 4 + 1))
    assert [step for step, _ in curve("loss/val")] == list(range(4, 13 * 4 + 1, 4))
    assert found.info.status == "FINISHED"


@pytest.mark.timeout(600)
def test_several_at_once_and_a_killed_run(shapes, tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    run = tmp_path / "r"
    more = ["--track", "wandb,mlflow", "--set", "checkpoint.every_steps=5"]
    waits = Fault(str(tmp_path / "fault"), "wait", "train", 18)
    job = ForkedJob(1, arguments(shapes, run, *more, epochs=300), waits.environment())
    for path in (waits.reached, run / "checkpoints/step_00000015", run / "trackers/mlflow.json"):
        job.wait_for(path)
    job.signal(signal.SIGKILL)
    job.end()
    last = column(run, "step")[-1] // 4 + 2
    (run / "stop").unlink(missing_ok=True)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 300", f"epochs: {last}"))  # a shorter run suffices
    train_here(shapes, run, *more, epochs=last)
    steps = list(range(1, last * 4 + 1))
    rows, _ = read_offline(run)
    assert [row["step"] for _, row in rows if "loss/train" in row] == steps
    _, _, curve = mlflow_run(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert [step for step, _ in curve("loss/train")] == steps
