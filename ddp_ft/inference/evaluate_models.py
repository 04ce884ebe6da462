"""Evaluation with trained models, on any number of processes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddp_ft.contracts import Batch
from ddp_ft.data.bad_samples.replace import left_out
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import connect
from ddp_ft.inference.asked import THRESHOLDS, Asked
from ddp_ft.inference.ensemble import combine_members, load_ensemble
from ddp_ft.inference.evaluation_data import check_unseen, open_source
from ddp_ft.inference.scoring import TIMEOUT_MINUTES, make_loader, make_scorer, workers_of
from ddp_ft.inference.thresholds import choose_thresholds, deciding_at
from ddp_ft.inference.trained_model import Trained


@dataclass(frozen=True)
class Request:
    """On which data the models are evaluated; `split` None: val if there is one, else all."""

    asked: Asked
    data: Path | None = None  # None: the first model's run's own
    split: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # keys of `data` that differ from the run's


def score_models(request: Request, launch: Launch) -> dict[str, Any]:
    """Metrics of the combined models on a data set, with the split and the number of samples; on every rank.

    The data is split as by the first model's run. If that run leaves out damaged samples (data.on_error), they are left
    out here too, and "damaged" is their number.
    """
    asked, device = request.asked, pick_device(request.asked.device, launch)
    with connect(launch, device, TIMEOUT_MINUTES) as world:
        world.from_main(lambda: check_unseen(asked.models, request.data, request.split))
        members = load_ensemble(asked.models, device, asked.views)
        thresholds = choose_thresholds(members[0].task, asked, world)
        members = deciding_at(members, thresholds)
        name, source = world.from_main(
            lambda: open_source(asked.models[0], request.data, request.split, members[0], request.settings)
        )
        workers = workers_of(asked, world, launch)
        collected = [
            make_scorer(member, world, asked.batch_size).collect(
                make_loader(source, member, world, workers), len(source)
            )
            for member in members
        ]
        lost = {"damaged": len(left_out(source))} if left_out(source) else {}
        at = {THRESHOLDS: thresholds} if thresholds else {}
        return {
            "split": name,
            "samples": len(source),
            **lost,
            **at,
            **world.from_main(lambda: _metrics(members, collected)),
        }


def _metrics(members: Sequence[Trained], collected: Sequence[tuple[Batch, Batch] | None]) -> dict[str, float]:
    predictions, records = zip(*(each for each in collected if each is not None), strict=True)
    return members[0].task.metrics(combine_members(members, predictions), records[0])
