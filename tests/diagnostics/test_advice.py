"""What is remarked on a run before its first step."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ddp_ft.config.loading import make_config, parse_assignment
from ddp_ft.contracts import LABEL, LABELS, NUMBERS, Schema
from ddp_ft.data.class_counts import ClassCounts, count_classes
from ddp_ft.data.image.headers import glance
from ddp_ft.diagnostics.advice import Situation, advise, half_width, small_val
from ddp_ft.diagnostics.finding import NOTE, OK, PROBLEM, WARNING, Finding, guarded, worst
from ddp_ft.errors import UserError
from tests.data.image.image_files import NumberSource, save_image
from tests.support.images import write_shapes
from tests.support.runs import train_here


def counts(*of_each, names="abcdefgh"):
    return ClassCounts(tuple(names[: len(of_each)]), of_each, sum(of_each))


SOUND = Situation(
    config=make_config({"train.batch_size": 32}),
    train=20_000,
    val=2_000,
    counts=counts(9_000, 11_000),
    val_counts=counts(900, 1_100),
    sizes=[(300, 400)] * 64,
    input_size=(224, 224),
    lr=1e-3,
    steps=1_875,
)


def warned(**changes):
    """Names of the warnings for a sound run with these changes; `config` are keys."""
    config = make_config({"train.batch_size": 32}, changes.pop("keys", {}))
    found = advise(replace(SOUND, config=config, **changes))
    assert all(finding.remedy for finding in found if finding.verdict == WARNING)
    return [finding.name for finding in found if finding.verdict != OK]


def test_a_sound_run_is_not_warned_of():
    assert warned() == []
    names = [finding.name for finding in advise(SOUND)]
    assert names == [
        "classes", "imbalance", "classes in val", "validation set", "image sizes", "learning rate", "batch size",
        "steps",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name, changes",
    [
        ("classes", {"counts": counts(9, 100)}),
        ("classes", {"counts": counts(5_000, 5_000, 99)}),
        ("imbalance", {"counts": counts(20, 401)}),
        ("class balance", {"keys": {"data.sampling": "balanced", "loss.class_weights": "balanced"}}),
        ("class balance", {"keys": {"data.sampling": "balanced", "loss.class_weights": "1,2"}}),
        ("class balance", {"keys": {"data.sampling": "balanced", "loss.positive_weights": "balanced"}}),
        ("classes in val", {"val_counts": counts(0, 50)}),
        ("validation set", {"val": 384}),
        ("image sizes", {"sizes": [(400, 223)] * 33 + [(224, 224)] * 31}),
        ("weights", {"keys": {"model.weights": "none"}, "train": 9_999}),
        ("learning rate", {"lr": 6e-3}),
        ("learning rate", {"lr": 1e-4, "keys": {"optim.name": "sgd"}}),
        ("learning rate", {"lr": 2e-3, "keys": {"optim.name": "lookahead_lion"}}),
        ("batch size", {"keys": {"train.batch_size": 20_001}}),
        ("steps", {"steps": 99}),
        ("job time", {"seconds_left": 60.0}),
        ("job time", {"seconds_left": -5.0}),
    ],
)
def test_each_warning_fires(name, changes):
    assert name in warned(**changes)
    assert make_config(parse_assignment(f"log.silence={name}")).log.silence == name.replace(" ", "-")


def found(name, **changes):
    config = make_config({"train.batch_size": 32}, changes.pop("keys", {}))
    (text,) = [each.text for each in advise(replace(SOUND, config=config, **changes)) if each.name == name]
    return text


def test_what_is_named_is_what_is_there():
    """Frozen random weights learn nothing, also with many images; several labels have no one accuracy."""
    scratch = {"model.weights": "none"}
    assert "all is learned" in found("weights", keys=scratch, train=100)
    for train in (100, 20_000):
        frozen = found("weights", keys=scratch, train=train, has_frozen=True)
        assert "learned" not in frozen and "random" in frozen
    assert "accuracy" in found("validation set", val=100)
    assert "accuracy" not in found("validation set", val=100, has_labels=True)
    of_folder, of_share = small_val(100, is_given=True), small_val(100)
    assert "--val-split" in of_share.remedy and "--" not in of_folder.remedy


def test_one_remedy_for_imbalance_is_proposed():
    [found] = [each for each in advise(replace(SOUND, counts=counts(20, 401))) if each.name == "imbalance"]
    assert ("--class-weights" in found.remedy) + ("--sampling" in found.remedy) == 1
    assert warned(keys={"data.sampling": "balanced"}) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": counts(10, 100)},
        {"counts": ClassCounts(tuple(map(str, range(200))), (50,) * 200, 10_000)},  # half a percent each, and no less
        {"counts": counts(20, 401), "keys": {"loss.class_weights": "balanced"}},
        {"keys": {"data.sampling": "balanced", "loss.class_weights": "[1, 1]"}},
        {"counts": counts(20, 401), "keys": {"data.sampling": "balanced"}},
        {"val": 385},
        {"sizes": [(400, 223)] * 32 + [(224, 224)] * 32},
        {"sizes": []},
        {"keys": {"model.weights": "none"}},
        {"lr": 0.1, "keys": {"optim.name": "sgd"}},
        {"lr": 1e3, "keys": {"optim.name": "adafactor"}},  # not in the table
        {"keys": {"train.batch_size": 20_000}},
        {"steps": 100},
        {"seconds_left": 3600.0},
        {"seconds_left": 60.0, "device": "cuda"},
        {"counts": None, "val_counts": None, "val": 3},  # numbers
    ],
)
def test_and_not_beside_its_bound(changes):
    assert warned(**changes) == []


def test_half_width_is_that_of_the_normal_approximation():
    assert half_width(10_000) == pytest.approx(0.98)
    assert half_width(100) == pytest.approx(9.8)
    assert half_width(0) == 100


def test_counts_of_each_kind_of_target():
    source = NumberSource(4)
    source.targets, names = np.array([2, 0, 2, 2]), ("a", "b", "c")
    found = count_classes(source, Schema(LABEL, names))
    assert found == ClassCounts(names, (1, 0, 3), 4)
    assert (found.smallest, found.largest, found.imbalance) == (("b", 0), ("c", 3), float("inf"))
    source.targets = np.array([[1, 0], [1, 1], [0, 0], [1, 0]], np.float32)
    assert count_classes(source, Schema(LABELS, ("a", "b"))) == ClassCounts(("a", "b"), (3, 1), 4)
    assert count_classes(source, Schema(NUMBERS, ("a", "b"))) is None


class Files(NumberSource):
    def __init__(self, files):
        super().__init__(len(files))
        self.files = files

    def name(self, index):
        return str(self.files[index])


def test_a_glance_sees_some_sizes_and_passes_over_what_is_damaged(tmp_path):
    sound = save_image(tmp_path / "a.png", size=(20, 16))
    (tmp_path / "torn.png").write_bytes(b"torn")
    files = [sound, tmp_path / "torn.png", tmp_path / "gone.png", tmp_path] * 50
    assert set(glance(Files(files))) == {(16, 20)}
    assert len(glance(Files([sound] * 200))) == 64
    assert glance(Files([sound] * 200), seconds=-1) == []
    assert glance(Files([])) == []


def test_a_check_that_fails_is_a_problem_and_ends_nothing():
    def mistaken():
        yield Finding("first", OK, "fine")
        raise UserError("No folder.", "Make one.")

    assert guarded("second", mistaken) == [
        Finding("first", OK, "fine"), Finding("second", PROBLEM, "No folder.", "Make one."),
    ]  # fmt: skip
    [broken] = guarded("third", lambda: [Finding("x", OK, str(1 // 0))])
    assert (broken.verdict, "ZeroDivisionError" in broken.text) == (PROBLEM, True)
    assert worst([]) == OK
    assert worst([Finding("x", WARNING, ""), Finding("x", NOTE, "")]) == WARNING


def test_what_a_run_warns_of_at_its_start(tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    write_shapes(Path("shapes"), train=2, val=2, size=(40, 30))

    def warned(*more):
        train_here(Path("shapes"), Path("run"), "--model", "timm/test_resnet", "--lr", 0.5, "--epochs", 3, *more)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: ")]

    first, second, rest = warned("--dry-run")
    assert first.startswith("Warning: learning rate: 0.5 with adamw; usual for fine-tuning are 1e-05 to 0.005.")
    assert second.startswith("Warning: batch size: ") and "--batch-size 3." in second
    assert rest.startswith("Warning: 5 more: weights, classes, steps, validation set, image sizes. The doctor command")
    silence = ["--set", "log.silence=[learning-rate, batch size,steps,image_sizes]"]
    lines = warned("--max-steps", 1, *silence)
    assert [line.split(": ")[1] for line in lines] == ["weights", "classes", "validation set"]
    assert all(value in line for value, line in zip(("6 images", "disc (2)", "±40.0"), lines, strict=True))
    assert warned("--max-steps", 2, "--extend") == []  # they were read at the first start
