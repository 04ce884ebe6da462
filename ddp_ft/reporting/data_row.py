"""The row about the data, in the table at the start."""

from ddp_ft.data.class_counts import count_classes
from ddp_ft.errors import printable
from ddp_ft.texts import count, plural, sample_noun
from ddp_ft.training.run import Run


def describe_data(run: Run) -> str:
    """Where the data is, the sizes of its sets, and its smallest and largest class."""
    return f"{run.config.data.path}: {_sets(run)}{_classes(run)}"


def _sets(run: Run) -> str:
    """The sizes of the sets; of that for the test too, so that a folder which is taken for it is seen."""
    test = f", {count(len(run.splits.test))} test" if run.splits.test is not None else ""
    return f"{count(run.plan.train_samples)} train, {count(run.plan.val_samples)} val{test}"


def _classes(run: Run) -> str:
    """The number of classes, and the smallest and the largest of them."""
    counts = count_classes(run.splits.train, run.splits.schema)
    if counts is None:
        return ""
    (small, fewest), (large, most) = counts.smallest, counts.largest
    noun = sample_noun(run.splits.train.kind)
    classes = plural(len(counts.names), "class", "classes")
    if fewest == most:
        return f"; {classes} of {plural(fewest, noun)}"
    ratio = f", a ratio of {counts.imbalance:.3g}" if fewest else ""
    return f"; {classes} of {fewest} ({printable(small)}) to {count(most)} ({printable(large)}) {noun}s{ratio}"
