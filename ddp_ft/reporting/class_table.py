"""A report's table of how many images of each class the sets have."""

from typing import Any

from ddp_ft.contracts import LABELS
from ddp_ft.data.roles import TRAIN
from ddp_ft.reporting.facts import SPLITS, RunFacts

TITLES = {TRAIN: "training", "val": "validation", "test": "test"}
OPEN_ROWS, MOST_ROWS = 12, 2000


def class_counts(facts: RunFacts) -> dict[str, Any]:
    """The template's values: titles of the sets, and the rows of classes with their counts; empty without classes.

    Counts are those of split.json; of a run that has none there, those of the evaluated sets.
    """
    found = {split: _stored(facts, split) or _evaluated(facts, split) for split in (TRAIN, *SPLITS)}
    counts = {split: each for split, each in found.items() if each and len(each) == len(facts.names)}
    sets = list(counts)
    if not sets:
        return {}
    most = max(1, *counts[sets[0]])
    rows = [
        {"name": name, "counts": [counts[split][c] for split in sets], "share": counts[sets[0]][c] / most}
        for c, name in enumerate(facts.names[:MOST_ROWS])
    ]
    several = facts.task.kinds[0] == LABELS
    return {"sets": [TITLES[split] for split in sets], "rows": rows, "several": several, "open_rows": OPEN_ROWS}


def _stored(facts: RunFacts, split: str) -> list[int]:
    """The counts in split.json; none if it has none, or something else."""
    stored = facts.split.get("class_counts")
    counts = stored.get(split) if isinstance(stored, dict) else None
    return counts if isinstance(counts, list) and all(isinstance(each, int) for each in counts) else []


def _evaluated(facts: RunFacts, split: str) -> list[int]:
    scored_set = facts.scored_sets.get(split)
    table = scored_set.class_table() if scored_set is not None else []
    return [int(row["samples"]) for row in table]
