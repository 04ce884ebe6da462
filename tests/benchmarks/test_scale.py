"""The measurements of large folders and of a step's own cost run, and count what they say."""

import json

from benchmarks import overhead, scale


def test_a_start_is_taken_apart(tmp_path, monkeypatch):
    monkeypatch.setenv(scale.FOLDER_VARIABLE, "")
    scale.make_folder(tmp_path / "data", files=23, classes=3)
    assert sorted(len(list(each.iterdir())) for each in (tmp_path / "data").iterdir()) == [7, 8, 8]
    record = tmp_path / "split.json"
    first, memory = scale.start(tmp_path / "data", record)
    assert len(json.loads(record.read_text())["train"]) > 15
    second, _ = scale.start(tmp_path / "data", record)
    parts = [{part for part, *_ in rows} for rows in (first, second)]
    assert parts[0] ^ parts[1] == {"split.json is read", "split.json is written"}
    assert memory["worker: grown since its first batch, MB"] < 5


def test_time_is_counted_once():
    ticks = iter([0.0, 1.0, 4.0, 4.5])  # the outer part begins, the inner one begins and ends, the outer one ends
    times = overhead.Times(cpu=lambda: next(ticks))
    with times.of("outer"), times.of("inner"):
        pass
    assert times.calls == {"outer": 1, "inner": 1}
    assert times.cpu == {"inner": 3.0, "outer": 1.5}


def test_table_adds_up():
    found = {"cpu": {overhead.STEP: 2.0, "forward": 1.0, "evaluation": 9.0}, "calls": {overhead.STEP: 2000}}
    text = overhead.table({**found, "wall": found["cpu"]})
    assert f"| {overhead.STEP} | 2000 | 2000 |" in text and "| **all** | **3000** | **3000** |" in text
    assert "| **all but the model and the loader** | **2000** | **2000** |" in text
