"""`--threshold`: which labels are there, as given or as the run's validation has it; and the metrics at these."""

import json
import shutil

import pytest
import torch

import ddp_ft
from ddp_ft.contracts import Evaluation
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.evaluate import evaluate
from ddp_ft.inference.asked import Asked, parse_thresholds
from ddp_ft.inference.thresholds import choose_thresholds
from ddp_ft.predict import predict
from ddp_ft.run_folder.evaluations import save_evaluation
from tests.support.images import SHAPES
from tests.support.runs import call_on
from tests.support.tables import write_csv
from tests.support.trained import write_model

BEST = {"disc": 0.2, "square": 0.75, "stripes": 0.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of several labels, on whose validation set these thresholds are best; the last label is in no image."""
    folder = tmp_path_factory.mktemp("thresholds") / "run"
    write_model(folder / "best", 1, task="multi-label")
    shares = torch.tensor([[0.3, 0.9, 0.1], [0.25, 0.8, 0.2], [0.15, 0.7, 0.7], [0.1, 0.6, 0.1]])
    target = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]])
    records = {"target": target, "weight": torch.ones(4)}
    save_evaluation(folder, "val", Evaluation({}, {"logits": torch.logit(shares)}, records))
    return folder


@pytest.fixture(scope="module")
def table(shapes, tmp_path_factory):
    images = sorted((shapes / "val").rglob("*.png"))
    labels = [";".join(SHAPES[: k % 3 + 1]) for k in range(len(images))]
    return write_csv(tmp_path_factory.mktemp("table") / "t.csv", {"image": list(map(str, images)), "label": labels})


def rows(table, output, *args):
    predict.main([*map(str, (*args, table, "--device", "cpu", "--output", output))], standalone_mode=False)
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("0.3", dict.fromkeys(SHAPES, 0.3)),
        ("square=0.9,disc=0.1", {"disc": 0.1, "square": 0.9, "stripes": 0.5}),
        ("validation", BEST),
    ],
)
def test_a_label_is_there_from_its_threshold_on(run, table, tmp_path, given, expected):
    found = rows(table, tmp_path / "p.jsonl", run, "--threshold", given)
    for row in found:
        shares = row["probabilities"]
        assert row["classes"] == [name for name in SHAPES if shares[name] >= expected[name]]
    model = ddp_ft.load(run, device="cpu", threshold=given)
    asked = Asked((run,), thresholds=parse_thresholds(given))
    assert choose_thresholds(model._task, asked, World(0, 1, 0, torch.device("cpu"))) == pytest.approx(expected)
    assert [list(each.labels) for each in model([row["file"] for row in found])] == [row["classes"] for row in found]


def test_metrics_are_those_at_the_thresholds_which_are_printed(run, table, tmp_path):
    args = (run, "--data", table, "--split", "all", "--device", "cpu")
    plain = json.loads(call_on(2, "ddp_ft.evaluate", *args))
    found = json.loads(call_on(2, "ddp_ft.evaluate", *args, "--threshold", "validation"))
    assert found["thresholds"] == pytest.approx(BEST, abs=1e-6) and "thresholds" not in plain
    assert [found[name] == plain[name] for name in ("loss", "mAP", "auroc")] == [True] * 3
    truth = [list(SHAPES[: k % 3 + 1]) for k in range(found["samples"])]
    decided = [row["classes"] for row in rows(table, tmp_path / "p.jsonl", run, "--threshold", "validation")]
    right = sum(a == b for a, b in zip(truth, decided, strict=True))
    assert found["exact_match"] == pytest.approx(right / len(truth))


def test_what_evaluate_writes_is_a_file_of_thresholds(run, table, tmp_path, capsys):
    file = tmp_path / "t.json"
    evaluate.main(
        [str(run), "--data", str(table), "--threshold", "validation", "--output", str(file)], standalone_mode=False
    )
    assert "chosen for the largest F1 on the run's validation images" in capsys.readouterr().err
    assert parse_thresholds(str(file)) == pytest.approx(BEST, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("30", "30 % is 0.3"), ("nan", "from 0 to 1"), ("valdation", "no probability"), ("disc=", "disc=: no prob"),
        ("nowhere.json", "No such file"), ("{}", "has no thresholds"), ("[1]", "has no thresholds"),
        ('{"disc": 1' + "0" * 400 + "}", "no probability"), ('{"disc":' + "[" * 10**5, "cannot be read"),
        ("disc=0.3,disc=0.7", "names 'disc' twice"),
        ('{"disc": "much"}', "disc=much: no probability"), ('{"disc": true}', "disc=True: a probability"),
    ],
)  # fmt: skip
def test_rubbish_is_refused(given, message, tmp_path):
    if given[0] in "{[":
        (tmp_path / "t.json").write_text(given)
        given = str(tmp_path / "t.json")
    with pytest.raises(UserError, match=message):
        parse_thresholds(given)


def test_models_and_runs_without_thresholds(run, table, tmp_path):
    for task, why in (("single-label", "one class for each image"), ("regression", "decides nothing")):
        settings = {"mean": [0.0], "std": [1.0]} if task == "regression" else {}
        names = ("n",) if task == "regression" else SHAPES
        model = write_model(tmp_path / task, task=task, names=names, settings=settings)
        with pytest.raises(UserError, match=why):
            rows(table, tmp_path / "p.jsonl", model, "--threshold", 0.3)
    alone = write_model(tmp_path / "alone", task="multi-label")
    wishes = {
        "has no predictions of a validation set": [alone, "--threshold", "validation"],
        "does not go with --also or --tta": [run, "--threshold", "validation", "--tta", "flip"],
        "no label 'disk'(.|\n)*Did you mean disc": [run, "--threshold", "disk=0.3"],
    }
    for message, args in wishes.items():
        with pytest.raises(UserError, match=message):
            rows(table, tmp_path / "p.jsonl", *args)


def test_thresholds_of_a_run_with_views_of_its_own(run, table, tmp_path):
    """What the run keeps of its validation set are predictions without them."""
    viewed = tmp_path / "viewed"
    shutil.copytree(run, viewed)
    described = json.loads((viewed / "best/model.json").read_text())
    (viewed / "best/model.json").write_text(json.dumps({**described, "views": "flip"}))
    with pytest.raises(UserError, match="--tta none"):
        rows(table, tmp_path / "p.jsonl", viewed, "--threshold", "validation")
    assert rows(table, tmp_path / "p.jsonl", viewed, "--threshold", "validation", "--tta", "none")
