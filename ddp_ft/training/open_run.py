"""The run folder at a start: made, locked, checked to be shared; and the files that describe the run."""

from ddp_ft.data.class_counts import count_classes
from ddp_ft.data.splits.record import Splits
from ddp_ft.errors import UserError
from ddp_ft.run_folder.lease import Lease
from ddp_ft.run_folder.provenance import record_start
from ddp_ft.run_folder.shared import put_token, seen_by
from ddp_ft.training.run import Run


def open_folder(run: Run, lease: Lease) -> None:
    """Make the run folder, take its lease, and check that every node sees it. UserError if one of these fails. A
    request to stop that is older than this launch is removed, and so is the summary of an earlier start."""
    folder, world = run.folder, run.world
    token = world.from_main(lambda: _create_folder(run, lease))
    blind = [str(rank) for rank, sees in enumerate(seen_by(world, folder.path / token)) if not sees]
    if blind:
        raise UserError(
            f"Run folder {folder.path} is not shared: rank 0 wrote to it, "
            f"but rank(s) {', '.join(blind)} do not see that.",
            "Give --run-dir a folder on a file system that all nodes mount.",
        )


def _create_folder(run: Run, lease: Lease) -> str:
    folder = run.folder
    folder.create()
    lease.take()
    with folder.writing():
        for left in folder.path.glob(".shared*"):  # of killed starts, and of earlier versions
            left.unlink(missing_ok=True)
        folder.clear_old_stop(run.launched)
        (folder.path / "summary.json").unlink(missing_ok=True)
        return put_token(folder.path)


def describe_run(run: Run) -> None:
    """Write the files that describe the run into its folder. UserError if it cannot be written to."""
    run.world.from_main(lambda: _write_description(run))
    for names in (run.splits.record, run.splits.inventory or {}):
        names.clear()  # of every image, and not needed any more


def _write_description(run: Run) -> None:
    folder, splits = run.folder, run.splits
    with folder.writing():
        folder.write_config(run.config)
        folder.write_json("classes.json", list(splits.schema.names))
        if not (folder.path / "split.json").exists():
            described = {"fingerprint": splits.fingerprint, "class_counts": _class_counts(splits)}
            inventory = {"inventory": splits.inventory} if splits.inventory else {}
            folder.write_json("split.json", {**described, **splits.record, **inventory})
        folder.write_json("plan.json", run.plan.to_mapping())
        record_start(folder.path, run.world)
        if splits.quarantine is not None:
            splits.quarantine.open(folder.path)


def _class_counts(splits: Splits) -> dict[str, list[int]]:
    """The number of images of each class, in the order of classes.json, by set; empty if targets are no classes."""
    sets = {"train": splits.train, "val": splits.val} | ({"test": splits.test} if splits.test is not None else {})
    counted = {name: count_classes(source, splits.schema) for name, source in sets.items()}
    return {name: list(found.counts) for name, found in counted.items() if found is not None}
