"""`ddp-ft runs`: one row for each run, whatever state its files are in."""

import fcntl
import json
import subprocess
import sys
import time

import pytest
import yaml

from ddp_ft.cli.runs import read_run, runs
from tests.support.runs import arguments, read, start_process, train_here, wait_for

LONG_AGO = 1_700_000_000.0


def make(folder, summary=None, rows=(), metric=None, **lease):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"path": "x"}, "eval": {"metric": metric}}))
    (folder / "plan.json").write_text(json.dumps({"task": "single-label", "total_steps": 100}))
    (folder / "lease.json").write_text(json.dumps({"host": "elsewhere", "heartbeat": LONG_AGO, "step": 40, **lease}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4')
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def val(step, **values):
    return {"step": step, "epoch": step / 10, "split": "val", **values}


def listed(folder, capsys, *more):
    assert runs.main([str(folder), *more], standalone_mode=False) is None
    return capsys.readouterr().out


def test_states_and_numbers(tmp_path):
    summary = {"status": "done", "step": 100, "epoch": 3.0, "val": {"accuracy": 0.5, "loss": 2.0}}
    done = read_run(make(tmp_path / "a", {**summary, "images_per_second": 12.5}), tmp_path)
    assert (done.state, done.step, done.total_steps, done.epoch, done.metric, done.best) == (
        "done", 100, 100, 3.0, "accuracy", 0.5,
    )  # fmt: skip
    assert (done.name, done.images_per_second, done.updated) == ("a", 12.5, LONG_AGO)
    rows = [val(10, loss=2.0, accuracy=0.25), val(20, loss=1.0, accuracy=0.5), val(30, loss=1.5, accuracy=0.375)]
    speed = {"step": 40, "epoch": 4.0, "split": "train", "loss": 1.0, "images_per_second": 7.0}
    for number, (metric, best) in enumerate([("loss", 1.0), (None, 0.5), ("of_another_run", None)]):
        crashed = read_run(make(tmp_path / f"c{number}", rows=[*rows, speed], metric=metric), tmp_path)
        assert (crashed.state, crashed.step, crashed.epoch, crashed.best) == ("crashed", 40, 4.0, best)
        assert crashed.images_per_second == 7.0
    assert read_run(make(tmp_path / "w", heartbeat=time.time()), tmp_path).state == "running"  # on another machine
    assert read_run(make(tmp_path / "s", {**summary, "status": "stopped"}), tmp_path).state == "stopped"


def test_the_rows_at_the_end_suffice(tmp_path):
    rows = [val(step, accuracy=step / 5000, filler="x" * 80) for step in range(5000)]
    assert read_run(make(tmp_path / "r", rows=rows), tmp_path).best == 4999 / 5000


def test_broken_folders_are_named_and_not_fatal(tmp_path, capsys):
    make(tmp_path / "good", {"status": "done", "step": 1, "val": {}})
    for name, file, content in (("b1", "summary.json", "{"), ("b2", "plan.json", "[1]"), ("b3", "lease.json", "\xff")):
        (make(tmp_path / name) / file).write_bytes(content.encode("latin-1"))
    (tmp_path / "no run" / "deep").mkdir(parents=True)
    (tmp_path / "a file").write_text("")
    found = {run["name"]: run for run in json.loads(listed(tmp_path, capsys, "--json"))}
    assert {name: run["state"] for name, run in found.items()} == {
        "good": "done", "b1": "broken", "b2": "broken", "b3": "broken",
    }  # fmt: skip
    out = listed(tmp_path, capsys)
    assert all(f"{name} cannot be read: " in out for name in ("b1", "b2", "b3"))


def test_order_names_and_width(tmp_path, capsys):
    for number, name in enumerate(("old", "ümläut and space", "deep/er", "a" * 200, "line\nbreak")):
        make(tmp_path / name, {"status": "done", "step": 1, "val": {"accuracy": 0.5}}, heartbeat=LONG_AGO + number)
    out = listed(tmp_path, capsys)
    lines = [line for line in out.splitlines() if "done" in line]
    assert [line.split("done")[0].strip() for line in lines] == [
        "line\\nbreak", "a" * 200, "deep/er", "ümläut and space", "old",
    ]  # fmt: skip
    assert all("accuracy 0.5" in line for line in lines)


@pytest.mark.parametrize("way", ["empty", "missing"])
def test_nothing_there(tmp_path, capsys, way):
    from ddp_ft.errors import UserError

    if way == "empty":
        assert listed(tmp_path, capsys) == f"No runs in {tmp_path}.\n"
    else:
        with pytest.raises(UserError, match="There is no folder"):
            runs.main([str(tmp_path / "x")], standalone_mode=False)


def test_it_starts_without_torch():
    script = "import sys, ddp_ft.cli.runs; print([m for m in ('torch', 'numpy', 'timm') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_lock_that_another_process_holds(tmp_path):
    run = make(tmp_path / "r", {"status": "done", "step": 1})
    with (run / ".lease").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        script = f"from ddp_ft.cli.runs import *; print(read_run(Path({str(run)!r}), Path('/')).state)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "running", done.stderr


@pytest.mark.slow
def test_real_runs(shapes, tmp_path, capsys):
    """Done, killed and running ones."""
    train_here(shapes, tmp_path / "done")
    killed = start_process(arguments(shapes, tmp_path / "killed", epochs=500))
    wait_for(tmp_path / "killed" / "checkpoints" / "last", killed)
    capsys.readouterr()
    states = {run["name"]: run for run in json.loads(listed(tmp_path, capsys, "--json"))}
    killed.kill()
    killed.wait()
    assert (states["done"]["state"], states["killed"]["state"]) == ("done", "running")
    assert states["done"]["best"] == read(tmp_path / "done", "summary.json")["val"]["accuracy"]
    states = {run["name"]: run for run in json.loads(listed(tmp_path, capsys, "--json"))}
    assert states["killed"]["state"] == "crashed" and states["killed"]["step"] >= 4
    assert states["killed"]["total_steps"] == 2000
