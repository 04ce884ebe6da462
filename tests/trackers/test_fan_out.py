"""metrics.jsonl and TensorBoard over restarts."""

import json
import math
import resource
import tempfile

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddp_ft.trackers.console import make_console
from ddp_ft.trackers.fan_out import make_trackers
from ddp_ft.trackers.jsonl import Resumed, read_rows


def curve(folder, tag):
    accumulator = EventAccumulator(str(folder)).Reload()
    return [(event.step, round(event.value, 6)) for event in accumulator.Scalars(tag)]


def start(folder, resume_step):
    (folder / "config.yaml").write_text("seed: 0\n")
    return make_trackers(folder, make_console(False), Resumed(resume_step))


def test_a_restart_cuts_what_runs_again(tmp_path):
    first = start(tmp_path, 0)
    for step in (10, 20, 30):
        first.log("train", step, step / 10, {"loss": step / 100})
    first.close()
    second = start(tmp_path, 20)
    second.log("train", 30, 3.0, {"loss": 0.5})
    second.close()
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path / "metrics.jsonl")] == [
        (10, 0.1),
        (20, 0.2),
        (30, 0.5),
    ]
    assert curve(tmp_path / "tensorboard", "2_loss/train") == [(10, 0.1), (20, 0.2), (30, 0.5)]


def test_an_evaluation_that_is_to_come_again_is_cut(tmp_path):
    first = start(tmp_path, 0)
    for phase in ("probe", "train"):
        for split in ("train", "val", "test"):
            first.log(split, 20, 2.0, {"loss": 1.0}, phase)
    first.close()
    for phase, due, left in (
        (
            "train",
            False,
            [("probe", "train"), ("probe", "val"), ("probe", "test"), ("train", "train"), ("train", "val")],
        ),
        ("train", True, [("probe", "train"), ("probe", "val"), ("probe", "test"), ("train", "train")]),
        ("probe", True, [("probe", "train")]),
    ):
        make_trackers(tmp_path, make_console(False), Resumed(20, phase, due)).close()
        rows = read_rows(tmp_path / "metrics.jsonl")
        assert [(row.get("phase", "train"), row["split"]) for row in rows] == left


def test_a_half_written_line_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "epoch": 0.5, "split": "train", "loss": 1.0, "time": 1}\n{"step": 2, "sp'
    )
    trackers = start(tmp_path, 5)
    trackers.log("val", 3, 1.0, {"loss": 2.0})
    trackers.close()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 3]


def test_rows_are_strict_json(tmp_path):
    trackers = start(tmp_path, 0)
    trackers.log("train", 1, 0.1, {"loss": math.nan})
    trackers.close()
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: 1 / 0)
    assert row["loss"] is None
    assert {"step", "epoch", "split"} <= set(row)


def test_recipe_text_and_hparams_reach_tensorboard(tmp_path):
    trackers = start(tmp_path, 0)
    trackers.finish({"optim.lr": 0.1, "optim.name": "adamw", "model.image_size": None}, {"val/accuracy": 0.9})
    trackers.close()
    accumulator = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert "recipe/text_summary" in accumulator.Tags()["tensors"]
    assert "_hparams_/session_start_info" in accumulator.summary_metadata
    assert curve(tmp_path / "tensorboard", "hparam/val/accuracy") == [(0, 0.9)]


PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x02\x00\x00\x00\x01\x08\x02\x00\x00\x00"
    b"{@\xe8\xdd\x00\x00\x00\x0fIDATx\x9cc\xf8\xcf\xc0\x00\x00\x03\x01\x01\x00\xc9\xfe\x92\xef"
)


def test_what_is_shown_outlives_a_restart_once(tmp_path):
    """Images and texts up to the step that a run goes on from, those of the probe too; the others come again."""
    first = start(tmp_path, 0)
    for phase in ("probe/", ""):
        for step in (4, 9, 12):
            first.image(f"{phase}8_images/confusion", step, PNG)
            first.pr_curve(f"{phase}cat", step, np.array([True, False]), np.array([0.8, 0.3]))
            first.text(f"{phase}profile", step, "table")
    first.close()
    for _ in range(2):
        second = start(tmp_path, 9)
        second.close()
        events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()
        shown = {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}
        assert shown == {"probe/8_images/confusion": [4, 9, 12], "8_images/confusion": [4, 9]}
        tensors = {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
        assert tensors["cat"] == [4, 9] and tensors["probe/cat"] == [4, 9, 12]
        assert tensors["profile/text_summary"] == [4, 9] and tensors["recipe/text_summary"] == [0]
        image = events.Images("8_images/confusion")[0]
        assert (image.width, image.height, image.encoded_image_string) == (2, 1, PNG)
    make_trackers(tmp_path, make_console(False), Resumed(9, evaluation_due=True)).close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Images("8_images/confusion")] == [4]  # that of step 9 comes again


def test_a_graph_outlives_a_restart_and_the_test_set_comes_again(tmp_path):
    first = start(tmp_path, 0)
    first.graph(torch.nn.Linear(2, 1), torch.zeros(1, 2))
    first.image("test/8_images/confusion", 5, PNG)
    first.close()
    for _ in range(2):
        start(tmp_path, 5).close()
        tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()
        assert tags["graph"] and tags["images"] == []


def test_what_cannot_be_shown_harms_nothing(tmp_path, capsys, monkeypatch):
    """Values that are not finite, and a disk without room for orders of images: the curves go on."""
    trackers = start(tmp_path, 0)
    trackers.histogram("weights/w", 1, np.array([np.nan, 1.0, np.inf, 2.0], dtype=np.float32))
    trackers.histogram("weights/v", 1, np.array([np.nan], dtype=np.float32))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    trackers.draw("8_images/2_confusion", 1, bytes)
    trackers.log("train", 2, 0.1, {"loss": 1.0})
    trackers.close()
    assert "8_images/2_confusion is not drawn: FileNotFoundError" in capsys.readouterr().err
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["histograms"] == ["weights/w"] and curve(tmp_path / "tensorboard", "2_loss/train") == [
        (2, 1.0)
    ]


def test_groups_are_read_in_order(tmp_path):
    trackers = start(tmp_path, 0)
    values = {"loss": 1.0, "grad_norm": 1.0, "images_per_second": 1.0, "cpu_load": 0.5, "lr/head": 0.1}
    trackers.log("train", 1, 0.1, values)
    trackers.log("val", 1, 0.1, {"loss": 1.0, "accuracy": 0.5, "ema_loss": 2.0})
    trackers.close()
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"]
    assert sorted(tags) == [
        "1_progress/epoch", "2_loss/ema_val", "2_loss/train", "2_loss/val", "3_quality/val_accuracy",
        "4_speed/images_per_second", "5_learning_rates/head", "6_gradients/grad_norm", "7_system/cpu_load",
    ]  # fmt: skip


def test_without_room_for_events_the_rows_go_on(tmp_path, capsys):
    """Files that cannot grow; TensorBoard's writer meets that in a thread of its own."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len("seed: 0\n"), limits[1]))
    try:
        trackers = start(tmp_path, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    trackers.log("train", 2, 0.1, {"loss": 1.0})
    trackers.close()
    printed = capsys.readouterr().err
    assert "TensorBoard gets no rows: OSError" in printed and "Traceback" not in printed
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 1.0
