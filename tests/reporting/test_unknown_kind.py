"""A task of which charts, reports and tables know nothing: they leave out what it has not, and do not fail."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ddp_ft.config.tasks import TASKS, TaskEntry
from ddp_ft.contracts import PROBE, Evaluation, TaskWords
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.inference.api import Prediction, _prediction
from ddp_ft.inference.table_writers import CsvTable, JsonLines, Lines, ParquetTable
from ddp_ft.reporting.card import card_text
from ddp_ft.reporting.comparison import write_comparison
from ddp_ft.reporting.facts import read_run
from ddp_ft.reporting.page import report_page
from ddp_ft.reporting.set_section import set_intervals
from ddp_ft.tasks.scored.base import ScoredSet
from ddp_ft.training.media import log_evaluation, log_first_batch
from tests.support.finished import write_finished
from tests.support.trained import PREPROCESS

ANSWER = {"text": "a dog"}


class Captions:
    """Tells what is in an image, in a sentence."""

    name, kinds, primary_metric, can_rank = "captions", ("text",), "accuracy", False
    words = TaskWords("words", "writes with", "image-to-text", "image-to-text")
    has_sets = True

    def __init__(self, names):
        self.names = names

    @classmethod
    def unfitted(cls, names):
        return cls(names)

    @classmethod
    def from_settings(cls, settings):
        return cls(settings["classes"])

    def settings(self):
        return {"classes": list(self.names)}

    def scored_set(self, predictions, records):
        sentences = np.zeros((len(records["target"]), 5))
        return ScoredSet(self.names, sentences, sentences) if self.has_sets else None

    def higher_is_better(self, metric):
        return True

    def target_words(self, batch, place):
        return []

    def columns(self):
        return {"text": str}

    def cells(self, answer):
        return [answer["text"]]

    def row(self, answer):
        return self.cells(answer)


@pytest.fixture(params=["a set of its own", "no set"])
def task(request, monkeypatch):
    monkeypatch.setattr(Captions, "has_sets", request.param != "no set")
    monkeypatch.setitem(TASKS, Captions.name, TaskEntry(f"{__name__}:Captions", Captions.kinds, "accuracy"))
    return Captions(("a", "dog"))


class Told(list):
    """Trackers that note what is to be drawn."""

    def draw(self, *drawn):
        self.append(drawn)

    pr_curve = draw


def test_images_are_shown_without_what_is_not_there(task, capsys):
    log = SimpleNamespace(graph=False, pictures=True)
    run = SimpleNamespace(
        config=SimpleNamespace(log=log), task=task, world=SimpleNamespace(is_main=True), prepare=lambda batch: batch,
        model=SimpleNamespace(processor=ImageProcessor(PREPROCESS)), splits=SimpleNamespace(test=None, val=None),
    )  # fmt: skip
    told = Told()
    log_first_batch(run, {"image": torch.zeros(2, 3, 8, 8), "mix_share": torch.tensor([0.5, 1])}, told)
    assert [captions for *_, captions in told] == [[[], []]]
    records = {"target": torch.zeros(3, 5)}
    log_evaluation(run, SimpleNamespace(step=1, phase=PROBE), Evaluation({}, {}, records), "val", told)
    assert len(told) == 1 and not capsys.readouterr().err


def test_reports_leave_it_out(task, tmp_path):
    paths = [write_finished(tmp_path / name, names=task.names) for name in "ab"]
    for path in paths:
        plan = path / "plan.json"
        plan.write_text(plan.read_text().replace("single-label", task.name))
        (path / "metrics.jsonl").write_text("")  # whose curves would take long to draw
    facts = read_run(paths[0])
    assert len(facts.scored_sets) == task.has_sets and not any(set_intervals(facts).values())
    page = report_page(facts, set_intervals(facts), sources={})
    assert "captions, 2 words: a, dog" in page
    assert "Mistakes and calibration" not in page and "Worst mistakes" not in page and "Reliability" not in page
    card = card_text(facts, set_intervals(facts))
    assert "pipeline_tag: image-to-text" in card and "it writes with a, dog." in card
    said = write_comparison(paths, tmp_path / "both.html")
    assert ("cannot be drawn again" in said[0]) == task.has_sets


@pytest.mark.parametrize(
    ("table", "row"), [(CsvTable, b"x.png,a dog,"), (JsonLines, b'"text": "a dog"'), (Lines, b"x.png  a dog")]
)
def test_its_answers_stand_in_tables(task, table, row):
    written, stream = table(task, 1), io.BytesIO()
    written.write(stream, [written.encode(["x.png", "y.png"], [ANSWER, "it is damaged"])])
    assert row in stream.getvalue() and b"it is damaged" in stream.getvalue()


def test_its_answers_stand_in_parquet(task):
    parquet = pytest.importorskip("pyarrow.parquet")
    written, stream = ParquetTable(task, 1), io.BytesIO()
    written.write(stream, [written.encode(["x.png"], [ANSWER])])
    assert parquet.read_table(stream).to_pylist() == [{"file": "x.png", "text": "a dog", "error": None}]


def test_a_prediction_has_what_is_known():
    assert _prediction(ANSWER) == Prediction()
