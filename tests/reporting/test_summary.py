"""The last lines of a run."""

from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddp_ft.reporting.summary import print_end
from ddp_ft.training.progress import Best


class Lines(list):
    """A console."""

    def print(self, text: str) -> None:
        self.append(text)

    def table(self, title: str, rows: dict[str, str]) -> None:
        self.append(title)


class Samples:
    kind = "text"

    def __len__(self) -> int:
        return 20


@pytest.mark.parametrize("top", [{"accuracy": 0.9}, {"accuracy": 0.8}, {}])  # none is known: of an earlier version
def test_why_a_model_is_kept_that_is_not_the_best_of_all(top):
    run = SimpleNamespace(
        metric="accuracy",
        score=itemgetter("accuracy"),
        splits=SimpleNamespace(val=Samples(), train=Samples()),
        folder=SimpleNamespace(path=Path("r"), best=Path("r/best")),
    )
    best = Best(4, 1.0, "train", "ema", {"accuracy": 0.8})
    progress = SimpleNamespace(best=best, top=top, step=4)
    lines = Lines()
    print_end(run, SimpleNamespace(progress=progress), lines, "done", {})
    explained = [line for line in lines if "accuracy 0.9000), which 20 texts cannot tell from it" in line]
    assert len(explained) == (1 if top.get("accuracy") == 0.9 else 0)
    assert lines[-1] == "Use it: ddp-ft predict r TEXT_OR_FOLDER"
