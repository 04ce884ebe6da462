"""What is kept of evaluations, as it is kept now and as it was by earlier versions."""

import pytest
import torch
from safetensors.torch import save_file

from ddp_ft.contracts import Evaluation
from ddp_ft.errors import UserError
from ddp_ft.run_folder import evaluations
from ddp_ft.tasks.registry import restore_task

SETTINGS = {"classes": ["a", "b"], "mean": [40.0, 0.0], "std": [10.0, 2.0]}
TASKS = ("single-label", "multi-label", "regression")
OUTPUTS = torch.tensor([[0.5, -1.0], [2.0, 0.25], [-3.0, 1.5]])
RECORDS = {"target": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), "weight": torch.ones(3)}


@pytest.mark.parametrize("name", TASKS)
def test_predictions_come_back(tmp_path, name):
    task = restore_task(name, SETTINGS)
    predictions = task.predictions(OUTPUTS, RECORDS)
    evaluations.save_evaluation(tmp_path, "val", Evaluation({}, predictions, RECORDS))
    found = evaluations.load_evaluation(tmp_path, "val", task)
    assert torch.equal(task.estimates(found.predictions), task.estimates(predictions))
    assert found.records.keys() == RECORDS.keys() and torch.equal(found.records["target"], RECORDS["target"])
    assert evaluations.load_evaluation(tmp_path, "test", task) is None


@pytest.mark.parametrize("name", TASKS)
def test_outputs_that_an_earlier_version_kept(tmp_path, name):
    """Regression's were standardised."""
    task = restore_task(name, SETTINGS)
    (tmp_path / "evaluation").mkdir()
    save_file({"outputs": OUTPUTS, **RECORDS}, tmp_path / "evaluation/val.safetensors")
    found = evaluations.load_evaluation(tmp_path, "val", task)
    assert torch.equal(task.estimates(found.predictions), task.estimates(task.predictions(OUTPUTS, RECORDS)))
    assert found.records.keys() == RECORDS.keys()


def test_what_is_too_large_or_damaged(tmp_path, monkeypatch):
    task = restore_task("single-label", SETTINGS)
    evaluation = Evaluation({}, task.predictions(OUTPUTS, RECORDS), RECORDS)
    evaluations.save_evaluation(tmp_path, "val", evaluation)
    file = tmp_path / "evaluation/val.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=r"val\.safetensors cannot be read"):
        evaluations.load_evaluation(tmp_path, "val", task)
    monkeypatch.setattr(evaluations, "MOST_VALUES", 5)
    evaluations.save_evaluation(tmp_path, "val", evaluation)
    assert not file.exists()
