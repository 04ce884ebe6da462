"""What a run shows in TensorBoard besides its curves."""

import gzip
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

from ddp_ft.config.forms import parse_steps
from ddp_ft.errors import UserError
from ddp_ft.run_folder.evaluations import load_evaluation
from ddp_ft.tasks.registry import restore_task
from ddp_ft.trackers.charts import CELL, MARGIN
from tests.support.runs import arguments, read, start_process, train_here, train_on
from tests.system.faults.forks import run_forked

IMAGES = [
    "8_images/1_first_batch", "8_images/2_confusion_matrix", "8_images/3_reliability_diagram",
    "8_images/4_roc_curves", "8_images/4_precision_recall_curves", "8_images/5_worst_mistakes",
]  # fmt: skip


def shown(run):
    return EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_shows_its_images_and_learns_the_same(shapes, tmp_path, world_size):
    on, off = tmp_path / "on", tmp_path / "off"
    more = ["--set", "log.histograms=true", "--set", "log.graph=true", "--mixup", "0.3"]
    train_on(world_size, shapes, on, "--set", "log.pictures=true", *more)
    train_on(world_size, shapes, off, "--mixup", "0.3")
    assert (on / "best/model.safetensors").read_bytes() == (off / "best/model.safetensors").read_bytes()
    events = shown(on)
    tags = events.Tags()
    assert set(IMAGES) <= set(tags["images"]) and not shown(off).Tags()["images"]
    assert {"disc", "square", "stripes"} <= set(tags["tensors"])  # precision-recall curves
    assert tags["graph"] and any(tag.startswith("weights/") for tag in tags["histograms"])
    assert any(tag.startswith("gradients/") for tag in tags["histograms"])
    evaluation = load_evaluation(on, "val", restore_task("single-label", {"classes": ["disc", "square", "stripes"]}))
    assert evaluation.predictions["logits"].shape == (12, 3)
    right = (evaluation.predictions["logits"].argmax(1) == evaluation.records["target"]).double().mean()
    assert float(right) == pytest.approx(read(on, "summary.json")["val"]["accuracy"])


def test_runs_are_compared_by_their_recipe_and_what_was_changed_of_it(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--set", "optim.weight_decay=0.3", "--lr", "0.02")
    metadata = shown(tmp_path / "r").summary_metadata["_hparams_/session_start_info"]
    given = parse_session_start_info_plugin_data(metadata.plugin_data.content).hparams
    assert sorted(given)[:5] == ["1_model", "2_learning_rate", "3_epochs", "4_batch_size", "5_recipe"]
    assert [given[name].number_value for name in sorted(given)[1:4]] == [0.02, 1, 8]
    assert given["5_recipe"].string_value.startswith("full, ") and given["optim.weight_decay"].number_value == 0.3
    assert "optim.weight_decay=0.3" in given["5_recipe"].string_value and "optim.lr" not in given


def test_the_first_batch_is_what_the_model_sees(shapes, tmp_path):
    """Turned upside down by an augmentation that the grid must show, in the model's size."""
    train_here(shapes, tmp_path / "r", "--set", "log.pictures=true", "--augment", "none", "--set", "augment.flip=1")
    image = shown(tmp_path / "r").Images(IMAGES[0])[0]
    grid = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    cell = grid[MARGIN : MARGIN + CELL, MARGIN : MARGIN + CELL]
    small = np.asarray(Image.fromarray(cell).resize((32, 32), Image.Resampling.NEAREST), dtype=int)
    files = sorted((shapes / "train").rglob("*.png"))
    wanted = [
        np.asarray(Image.open(file).resize((32, 32), Image.Resampling.BICUBIC), dtype=int)[:, ::-1] for file in files
    ]
    assert min(np.abs(small - each).mean() for each in wanted) < 2


def test_regression_and_labels(shapes, tmp_path):
    rows = ["image,age,label"]
    for number, file in enumerate(sorted(shapes.rglob("*.png"))):
        rows.append(f"{file},{number % 7}.5,{'sun;rain' if number % 2 else 'sun'}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows))
    train_here(table, tmp_path / "age", "--set", "data.target=age", "--set", "log.pictures=true")
    assert "8_images/2_predicted_over_true_0" in shown(tmp_path / "age").Tags()["images"]
    train_here(table, tmp_path / "sky", "--task", "multi-label", "--set", "log.pictures=true")
    tags = shown(tmp_path / "sky").Tags()
    assert "8_images/3_reliability_diagram" in tags["images"] and "rain" in tags["tensors"]


def test_profile(shapes, tmp_path):
    said = train_on(2, shapes, tmp_path / "r", "--profile", "2-3")
    assert "Steps 2-3 are traced" in said
    for rank in (0, 1):
        with gzip.open(tmp_path / f"r/profile/steps_2-3_rank_{rank}.json.gz") as file:
            names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
        assert any("convolution_backward" in name for name in names)
        assert len({name for name in names if name.startswith("ProfilerStep#")}) == 2
    assert "profile/text_summary" in shown(tmp_path / "r").Tags()["tensors"]


def test_a_run_that_ends_before_the_last_traced_step(shapes, tmp_path):
    codes, said = run_forked(1, arguments(shapes, tmp_path / "r", "--profile", "3-9"))
    assert codes == [0] and "ERROR:" not in said and "USDT" not in said, said  # of torch's profiler, about a GPU
    assert "Steps 3-9 are traced" in said and (tmp_path / "r/profile/steps_3-9_rank_0.json.gz").exists()
    said = train_on(1, shapes, tmp_path / "early", "--profile", "5-9")  # of which only the step before was there
    assert "traced" not in said and not (tmp_path / "early/profile").exists()


def test_a_trace_that_cannot_be_written_is_a_warning(shapes, tmp_path, capsys):
    (tmp_path / "r/profile/steps_2-3_rank_0.json.gz").mkdir(parents=True)
    train_here(shapes, tmp_path / "r", "--profile", "2-3")
    assert "no trace of steps 2-3: " in capsys.readouterr().err
    assert read(tmp_path / "r", "summary.json")["status"] == "done"


@pytest.mark.slow
def test_a_run_that_fails_while_it_is_traced_ends_with_its_message(shapes, tmp_path):
    """And not by a signal: torch's profiler crashes processes that end while it runs."""
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    for file in sorted((data / "train").rglob("*.png"))[::9]:
        file.write_bytes(file.read_bytes()[:-60])
    process = start_process(arguments(data, tmp_path / "r", "--profile", "1-99", epochs=2))
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 2 and ".png" in said, said


def test_steps_to_profile():
    assert list(parse_steps("3-5")) == [3, 4, 5] and list(parse_steps("7")) == [7] and not parse_steps(None)
    for text in ("5-3", "0-2", "a-b", "-4", ""):
        with pytest.raises(UserError, match="no range of steps"):
            parse_steps(text)
