"""RUN/evaluation/: predictions of the best model for each sample of val and test, from which reports are made."""

from pathlib import Path

from ddp_ft.contracts import Evaluation, Task
from ddp_ft.errors import UserError, reason_of
from ddp_ft.files import replacing
from ddp_ft.run_folder.model_folder import read_weights, save_weights

FOLDER = "evaluation"
# Predictions of more values are not kept: 2^26 is 50,000 samples of 1,300 classes, 256 MiB.
MOST_VALUES = 2**26
_PREDICTIONS = "predictions."  # what their names begin with, beside the records


def save_evaluation(run: Path, split: str, evaluation: Evaluation) -> None:
    """Replace the stored predictions of that split, "val" or "test"; too large ones are removed and not replaced."""
    file = _file(run, split)
    assert evaluation.predictions is not None and evaluation.records is not None
    kept = {f"{_PREDICTIONS}{name}": tensor for name, tensor in evaluation.predictions.items()} | evaluation.records
    if sum(tensor.numel() for tensor in evaluation.predictions.values()) > MOST_VALUES:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(exist_ok=True)
    with replacing(file, durable=False) as aside:
        save_weights(aside, kept)


def load_evaluation(run: Path, split: str, task: Task) -> Evaluation | None:
    """The stored predictions of that split, without metrics; None if there are none. UserError if they are damaged."""
    file = _file(run, split)
    if not file.is_file():
        return None
    try:
        kept = read_weights(file)
        if "outputs" in kept:  # as it was kept before tasks had predictions of several tensors
            return Evaluation({}, task.predictions(kept.pop("outputs"), kept), kept)
        if not any(name.startswith(_PREDICTIONS) for name in kept):
            raise ValueError("it has no predictions")
        predictions = {name: kept.pop(name) for name in list(kept) if name.startswith(_PREDICTIONS)}
        return Evaluation({}, {name.removeprefix(_PREDICTIONS): each for name, each in predictions.items()}, kept)
    except UserError:
        raise
    except Exception as error:
        hint = "" if isinstance(error, PermissionError) else "Remove it: reports do without."
        raise UserError(f"{file} cannot be read: {reason_of(error)}.", hint) from None


def _file(run: Path, split: str) -> Path:
    return run / FOLDER / f"{split}.safetensors"
