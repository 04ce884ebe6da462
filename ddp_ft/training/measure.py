"""The evaluation of a run's present weights over a source."""

from ddp_ft.contracts import Evaluation, LabelledSource
from ddp_ft.evaluation.evaluator import Scorer
from ddp_ft.training.batches import evaluation_batches
from ddp_ft.training.compile import eager
from ddp_ft.training.run import Run


def measure(run: Run, source: LabelledSource) -> Evaluation:
    """Evaluate the bare module over a source; rank 0 alone has the outputs. Collective; may raise StopAgreed."""
    scorer = Scorer(run.model.module, run.model.call, run.task, run.prepare, run.world, run.plan.precision)
    with eager(run.model.module):
        return scorer.evaluate(evaluation_batches(run, source), len(source))
