"""What tasks share whose outputs are logits of classes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import Batch
from ddp_ft.tasks.base import SupervisedTask
from ddp_ft.tasks.scored.base import Floats
from ddp_ft.tasks.scored.probabilities import ScoredProbabilities, truth_of

if TYPE_CHECKING:
    from typing_extensions import Self

LOGITS = "logits"


class ClassTask(SupervisedTask):
    """A task with one logit for each class, trained with label smoothing."""

    # The columns before those of the classes' probabilities.
    decided: ClassVar[Mapping[str, type]]
    scored_class: ClassVar[type[ScoredProbabilities]]
    label_smoothing = 0.0

    @classmethod
    def configured(cls, config: RunConfig, names: tuple[str, ...]) -> "Self":
        """Return the task with the configured loss, label smoothing and metric. UserError for a loss that does not
        fit."""
        task = super().configured(config, names)
        task.label_smoothing = config.loss.label_smoothing
        return task

    def predictions(self, outputs: Tensor, batch: Batch) -> Batch:
        """ "logits": float32, B x classes."""
        return {LOGITS: outputs.float()}

    def as_outputs(self, predictions: Batch) -> Tensor:
        """The logits."""
        return predictions[LOGITS]

    def make_scored_set(self, estimates: Floats, target: NDArray[Any]) -> ScoredProbabilities:
        """The task's kind of set; class numbers are spread out."""
        return self.scored_class(self.names, estimates, truth_of(target, estimates))

    def columns(self) -> dict[str, type]:
        """What is decided, and the probabilities of all classes."""
        return {**self.decided, **{f"prob_{name}": float for name in self.names}}
