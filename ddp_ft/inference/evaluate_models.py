"""Evaluation with trained models, on any number of processes, and the data for it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ddp_ft.config.loading import make_config
from ddp_ft.config.schema import DataConfig
from ddp_ft.contracts import Batch, Source
from ddp_ft.data.bad_samples.replace import left_out
from ddp_ft.data.splits.open import open_part, schema_in
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import connect
from ddp_ft.errors import UserError
from ddp_ft.inference.scoring import TIMEOUT_MINUTES, combine_members, load_ensemble, make_loader, make_scorer
from ddp_ft.inference.trained_model import Trained, refuse_code_inside
from ddp_ft.run_folder.folder import RunFolder


@dataclass(frozen=True)
class Request:
    """What to evaluate: `models` are combined; `split` None: val if there is one, else all; `views`: one of VIEWS."""

    models: tuple[Path, ...]
    data: Path | None = None  # None: the first model's run's own
    split: str | None = None
    views: str = "none"
    device: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)  # keys of `data` that differ from the run's


def score_models(request: Request, launch: Launch) -> dict[str, Any]:
    """Metrics of the combined models on a data set, with the split and the number of samples; on every rank.

    The data is split as by the first model's run. If that run leaves out damaged samples (data.on_error), they are left
    out here too, and "damaged" is their number.
    """
    device = pick_device(request.device, launch)
    with connect(launch, device, TIMEOUT_MINUTES) as world:
        members = load_ensemble(request.models, device, request.views)
        name, source = world.from_main(
            lambda: open_source(request.models[0], request.data, request.split, members[0], request.settings)
        )
        collected = [
            make_scorer(member, world).collect(make_loader(source, member, world, launch), len(source))
            for member in members
        ]
        lost = {"damaged": len(left_out(source))} if left_out(source) else {}
        return {"split": name, "samples": len(source), **lost, **world.from_main(lambda: _metrics(members, collected))}


def _metrics(members: Sequence[Trained], collected: Sequence[tuple[Batch, Batch] | None]) -> dict[str, float]:
    predictions, records = zip(*(each for each in collected if each is not None), strict=True)
    return members[0].task.metrics(combine_members(members, predictions), records[0])


def open_source(
    model: Path, data: Path | None, split: str | None, trained: Trained, settings: Mapping[str, Any] | None = None
) -> tuple[str, Source]:
    """The requested part of the data, or of the run's own, split as the model's run did; its name, and its samples.

    The run's own settings, such as a table's columns, hold unless `settings` has others.
    """
    run, data = _run_of(model), data or _own_data(model)
    stored, changed = run.stored_config(), make_config(settings or {}).data
    names = [path.partition(".")[2] for path in settings or {}]
    base = stored.data if stored else DataConfig()
    config = replace(base, **{name: getattr(changed, name) for name in names}, path=data)
    schema = schema_in(data, trained.task.kinds, trained.names)
    return open_part(config, schema, split, run.split())


def _own_data(model: Path) -> Path:
    """The data of the model's own run. UserError if it has none, or they are not where they were."""
    stored = _run_of(model).stored_config()
    if stored is None or stored.data.path is None:
        raise UserError(f"{model} belongs to no run folder, whose data could be used.", "Name data: --data DATA.")
    if not stored.data.is_there:
        raise UserError(f"The run's data, {stored.data.path}, is not there any more.", "Name it: --data DATA.")
    refuse_code_inside(_run_of(model).path, [stored.data.path])
    return stored.data.path


def own_validation(model: Path, trained: Trained) -> Source | None:
    """The validation set of the model's own run; None if it is not there, or has changed."""
    stored = _run_of(model).stored_config()
    if stored is None or stored.data.path is None or not stored.data.is_there:
        return None
    with suppress(UserError):
        return open_source(model, stored.data.path, None, trained)[1]
    return None


def _run_of(model: Path) -> RunFolder:
    """The run folder that a model belongs to: the folder itself, or the parent of a model folder."""
    return RunFolder(model.absolute().parent if (model / "model.json").is_file() else model)
