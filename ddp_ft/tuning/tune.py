"""`--tune`: what a run leaves open is decided by measuring with the processes, the model and the images of the
training.

It does not affect the training otherwise: it works on parts that are dropped and composed anew with the answer.
"""

import gc
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ddp_ft.config.keys import RECIPE
from ddp_ft.config.loading import asks_for_measuring, is_open
from ddp_ft.config.schema import KEYS
from ddp_ft.data.rng import generators_kept
from ddp_ft.distributed.environment import usable_cores
from ddp_ft.errors import UserError
from ddp_ft.trackers.console import Console
from ddp_ft.training.request import Request
from ddp_ft.training.run import Run
from ddp_ft.tuning.questions import TUNED, Questions
from ddp_ft.tuning.steps import MICRO_BATCH, rule_of


def keys_to_measure(request: Request) -> list[str]:
    """Return what this start has to measure: nothing that was given, or measured by an earlier start. Raises UserError
    if the run has begun without measuring something that its recipe depends on."""
    asked = TUNED if request.tune else ()
    if asks_for_measuring(request.layers, MICRO_BATCH):
        asked = (*asked, MICRO_BATCH)
    keys = [key for key in TUNED if key in asked and is_open(request.layers, key) and key not in request.tuned]
    if request.earlier and (late := [key for key in keys if KEYS[key].kind == RECIPE]):
        raise UserError(
            f"--tune: {request.run_dir} holds a run that began without it; {', '.join(late)} cannot change any more.",
            "Leave --tune out to continue that run, or choose another folder with --run-dir.",
        )
    return keys


Rows = list[dict[str, Any]]


def before_measuring(keys: Collection[str]) -> AbstractContextManager[None]:
    """Return what to compose a run in: if something is measured with it, it is composed again, with the same draws."""
    return generators_kept() if keys else nullcontext()


@generators_kept()
def tune(run: Run, keys: Collection[str], local_world_size: int) -> tuple[dict[str, Any], Rows]:
    """Decide these keys, one question after the other; return their values, and rows of what was measured. Changes the
    model, but no generator: the caller must compose the run anew. Raises StopAgreed on a request to stop."""
    tuning = Questions(run, keys, usable_cores() // local_world_size, rule_of(run))
    if not run.config.freeze.cache_features:
        tuning.formats()
        tuning.micro_batches()
        tuning.decoders()
        tuning.workers()
    tuned = {key: tuning.values[key] for key in keys}
    gc.collect()
    if run.world.device.type == "cuda":
        torch.cuda.empty_cache()
    return run.world.from_main(lambda: (tuned, tuning.rows))


def print_measured(measured: Rows, console: Console) -> None:
    """Print the table of what was measured and chosen; one line if there was nothing to measure."""
    if not measured:
        console.print("Note: nothing was measured: this run trains on features, or leaves no choice.")
        return
    rows = []
    for before, row in zip([{}, *measured], measured, strict=False):
        what = row["what"] if row["what"] != before.get("what") else ""
        name = f"{'*' if row['chosen'] else ' '} {row['candidate']}"
        rows.append((what, name, f"{row['per_second']:.3g}", f"{row['ratio']:.2f}", row["note"]))
    console.grid("Measured; * is taken", ("", "  candidate", "images/s", "ratio", ""), rows)
