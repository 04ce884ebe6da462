"""A run that is composed and described: resumed, trained to its end, tested, summarised and reported."""

from ddp_ft.contracts import DONE, PROBE, STOPPED
from ddp_ft.distributed.agreement import StopAgreed
from ddp_ft.reporting.summary import hyperparameters, print_end, report_at_the_end, summarise
from ddp_ft.run.open_trackers import open_trackers
from ddp_ft.slurm.walltime import Allocation
from ddp_ft.trackers.console import Console
from ddp_ft.training.best_model import mend_best, test_best, view_best
from ddp_ft.training.checkpointing import restore, save
from ddp_ft.training.faults import settle_damage, write_to_the_end
from ddp_ft.training.loop import train
from ddp_ft.training.open_phase import close_probe, describe_phase, open_phase
from ddp_ft.training.packing import pack_samples
from ddp_ft.training.recorder import Recorder
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState


def resume(run: Run, state: TrainState, console: Console) -> Run:
    """Continue from what an earlier start left in the run folder; return the run with its samples prepared. Raises
    StopAgreed if all ranks were asked to stop before that was done."""
    settle_damage(run, console.print)
    for trouble in restore(run, state):
        console.print(f"Warning: a checkpoint is damaged and was set aside. {trouble}")
    if trouble := mend_best(run, state):
        console.print(f"Warning: {trouble}")
    return pack_samples(run, console.print)


def train_run(run: Run, state: TrainState, console: Console, allocation: Allocation) -> str:
    """Train all phases, from the state's step on; test the best model, and report. Return DONE or STOPPED."""
    recorder = Recorder(run, state, console, open_trackers(run, state, console), allocation)
    status, test = "", {}
    try:
        status = _train_phases(run, state, recorder)
        recorder.end()
        settle_damage(run, recorder.print)  # on CUDA the last step's decision is never asked for
        write_to_the_end(run)
        if status == DONE:
            test = _finish(run, state, recorder)
    except StopAgreed:  # outside of steps: the newest checkpoint has everything
        status = STOPPED
    finally:
        run.writer.wait()
        recorder.close(is_done=status == DONE)
    if status == STOPPED:
        write_to_the_end(run)
        _write_summary(run, state, STOPPED, {})
    print_end(run, state, console, status, test)
    if status == DONE:
        _report(run, console)
    return status


def stop_before_training(run: Run, state: TrainState, console: Console, writes: bool) -> str:
    """Report that all ranks agreed to stop while something was measured; `writes`: also in the run folder."""
    console.print("Stopped before training. The same command continues from there.")
    if writes:
        restore(run, state)  # an earlier start may have trained, which the summary contains
        _write_summary(run, state, STOPPED, {})
    return STOPPED


def _train_phases(run: Run, state: TrainState, recorder: Recorder) -> str:
    progress = state.progress
    was_probing = progress.phase == PROBE
    if was_probing:
        probe = open_phase(run, state, recorder.print)
        recorder.print(describe_phase(run, state, probe))
        if train(run, state, probe, recorder) == STOPPED:
            return STOPPED
        close_probe(run, state)
        recorder.leave()
    phase = open_phase(run, state, recorder.print)
    if was_probing:
        save(run, state, recorder)  # so that the probe is not trained again
    if was_probing or progress.restarts or len(run.stages) > 1:  # else the table at the start says it
        recorder.print(describe_phase(run, state, phase))
    return train(run, state, phase, recorder)


def _finish(run: Run, state: TrainState, recorder: Recorder) -> dict[str, float]:
    """Return the metrics of the best model on the test set, if there is one, and write summary.json. Raises
    StopAgreed."""
    metrics = test_best(run, state, recorder) if run.splits.test is not None else {}
    viewed = view_best(run, state, recorder)
    recorder.watch.look()
    found = state.progress.best.metrics
    deciding_first = sorted(found, key=lambda name: name != run.metric)
    recorder.trackers.finish(hyperparameters(run), {f"val/{name}": found[name] for name in deciding_first})
    _write_summary(run, state, DONE, metrics, viewed)
    return metrics


def _write_summary(
    run: Run, state: TrainState, status: str, test: dict[str, float], more: dict[str, dict[str, float]] | None = None
) -> None:
    """Write summary.json; `test` and `more` have the best model's metrics on sets, empty for one that is not there."""
    sets = {"test": test, **(more or {})}
    run.world.from_main(lambda: run.folder.write_json("summary.json", summarise(run, state, status, sets)))


def _report(run: Run, console: Console) -> None:
    """Write the report on rank 0. A run that was stopped has no time for it; `ddp-ft report` writes its page."""
    if not run.config.log.report:
        return
    sets = {"val": run.splits.val} | ({"test": run.splits.test} if run.splits.test else {})
    run.world.from_main(lambda: report_at_the_end(run.folder.path, sets, console.print))
