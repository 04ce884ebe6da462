"""RUN/evaluation/: what the best model made of each sample of val and test. Reports are drawn from it."""

from pathlib import Path

from safetensors.torch import load_file

from ddp_ft.contracts import Evaluation
from ddp_ft.errors import UserError
from ddp_ft.run_folder.model_folder import save_weights

FOLDER = "evaluation"
# Larger tables of outputs are not kept: 256 MiB hold those of 50,000 pictures and 1,300 classes.
MOST_BYTES = 256 * 2**20


def save_evaluation(run: Path, split: str, evaluation: Evaluation) -> None:
    """Replace the outputs kept of that split, "val" or "test"; too large ones are removed and not replaced."""
    file = _file(run, split)
    assert evaluation.outputs is not None and evaluation.records is not None
    if evaluation.outputs.nbytes > MOST_BYTES:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(exist_ok=True)
    aside = file.with_name(f".{file.name}.writing")
    kept = {name: evaluation.records[name] for name in ("target", "weight") if name in evaluation.records}
    save_weights(aside, kept | {"outputs": evaluation.outputs})
    aside.replace(file)


def load_evaluation(run: Path, split: str) -> Evaluation | None:
    """The outputs kept of that split, without metrics; None if there are none. UserError if they cannot be read."""
    file = _file(run, split)
    if not file.is_file():
        return None
    try:
        records = load_file(file)
        return Evaluation({}, records.pop("outputs"), records)
    except Exception as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}", "Remove it.") from None


def _file(run: Path, split: str) -> Path:
    return run / FOLDER / f"{split}.safetensors"
