"""A run's state, copied and handed to the background writer, and restored."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from ddp_ft.config.keys import LENGTH
from ddp_ft.config.loading import to_flat
from ddp_ft.errors import UserError, printable
from ddp_ft.run_folder.background_writer import CHECKPOINT
from ddp_ft.run_folder.checkpoints import load_checkpoint, load_ema, read_score
from ddp_ft.run_folder.model_folder import recover_model_folder
from ddp_ft.training.plan import changed_code
from ddp_ft.training.recorder import Recorder
from ddp_ft.training.run import Run
from ddp_ft.training.state import Snapshot, TrainState

# In a checkpoint, as in the plan: the hashes of the files of the user's own, and that of the weights an adapter is on.
CODE, BASE = "code", "base"


def save(run: Run, state: TrainState, recorder: Recorder) -> None:
    """Copy the state, and write it in the background as a checkpoint from which any number of ranks can continue, after
    what was logged is durable. Collective."""
    progress, began = state.progress, time.perf_counter()
    progress.saves += 1
    snapshot = state.state_dict(run.world)
    progress.copy_seconds += time.perf_counter() - began
    if snapshot is not None:
        began = time.perf_counter()
        rest = {**snapshot.rest, CODE: run.plan.code, BASE: run.plan.base}
        checkpoint = partial(run.checkpoints.save, progress.step, snapshot.weights, rest, state.score)
        write = partial(checkpoint, ema=snapshot.ema, phase=progress.phase)
        run.writer.submit(CHECKPOINT, recorder.trackers.sync, write)
        progress.stall_seconds += time.perf_counter() - began
    recorder.saved()


def restore(run: Run, state: TrainState) -> list[str]:
    """Continue from the newest checkpoint that is whole, if there is one; return what was wrong with newer ones. The
    optimizer's part waits until the phase is opened. UserError if none of the checkpoints is whole."""
    latest, troubles = run.world.from_main(lambda: _find(run))
    length = to_flat(run.config, [LENGTH])
    if latest is not None:
        weights, rest = load_checkpoint(latest)
        _check_base(run, rest)
        try:
            state.load_state_dict(Snapshot(weights, load_ema(latest), rest), run.world)
        except UserError as error:
            raise UserError(error.message, f"{_changed_since(run, rest)}{error.hint}".strip()) from error
        state.score = read_score(latest)
        state.progress.restarts += 1
        if state.progress.length != length:  # --extend: the run has a new end
            state.progress.budget, state.progress.stale = None, 0
    state.progress.length = length
    return troubles


def _check_base(run: Run, rest: Mapping[str, Any]) -> None:
    """UserError for a checkpoint of an adapter on other weights than those that were loaded."""
    if (then := rest.get(BASE, "")) != run.plan.base:
        raise UserError(
            f"The checkpoint's adapter is on other weights than --weights {run.config.model.weights} holds now "
            f"(SHA-256 {then[:12] or 'none'} then, {run.plan.base[:12] or 'none'} now).",
            "Bring back the file of then, or begin another run with --run-dir.",
        )


def _changed_since(run: Run, rest: Mapping[str, Any]) -> str:
    """A sentence that names the files of the user's own that have changed since the checkpoint; empty if none has."""
    changed = changed_code(run.plan.code, rest.get(CODE, {}))
    if not changed:
        return ""
    files = ", ".join(printable(name.rpartition(":")[0]) for name in changed)
    return f"Since that checkpoint {files} changed: continue with the file as it was, or begin another run. "


def _find(run: Run) -> tuple[Any, list[str]]:
    recover_model_folder(run.folder.best)
    return run.checkpoints.newest_sound()
