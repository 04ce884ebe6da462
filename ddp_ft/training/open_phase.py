"""The phases of a run, opened one after the other: the probe, then the training."""

from ddp_ft.config.schema import OptimConfig
from ddp_ft.contracts import PROBE, Log
from ddp_ft.models.backbone import head_module
from ddp_ft.models.freezing import freeze_parameters
from ddp_ft.training.compile import OFF
from ddp_ft.training.data_phase import DataPhase, describe_stage
from ddp_ft.training.feature_phase import FeaturePhase
from ddp_ft.training.optim import make_optimizer, optimizer_of
from ddp_ft.training.phase import Phase
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState


def open_phase(run: Run, state: TrainState, log: Log) -> Phase:
    """Return the phase that the state is in, ready for the state's next step."""
    phase: Phase
    if state.progress.phase == PROBE or run.config.freeze.cache_features:
        if state.progress.phase == PROBE:
            _begin_probe(run, state)
        elif run.config.compute.compile != OFF:
            log("Note: compute.compile does nothing here: the head alone is trained, on cached features.")
        phase = FeaturePhase(run, state, log)
    else:
        phase = data_phase = DataPhase(run, state)
        for stage in range(1, state.progress.stage + 1):
            data_phase.enter_stage(state, stage)
    state.load_optimizer()
    return phase


def describe_phase(run: Run, state: TrainState, phase: Phase) -> str:
    """The line that says which phase begins, or where in it the run continues; and the stage of unfreezing, if there
    are several."""
    is_probe, step, last = phase.name == PROBE, state.progress.step, phase.last_step(state.progress)
    name = "Probe, the head alone on features" if is_probe else "Training"
    epochs = run.config.probe.epochs if is_probe else run.plan.epochs
    where = f"continues after step {step} of {last}" if step else f"epochs {epochs}, steps {last}"
    stage = "" if is_probe or len(run.stages) == 1 else f"\n{describe_stage(run, state.progress.stage)}"
    return f"{name}: {where}.{stage}"


def _begin_probe(run: Run, state: TrainState) -> None:
    probe = run.config.probe
    parameters = list(head_module(run.model.module, run.model.head_path or "").parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    settings = OptimConfig(name="adamw", lr=probe.lr, weight_decay=probe.weight_decay)
    groups = [{"params": parameters, "name": "head", "lr_scale": 1.0, "weight_decay": probe.weight_decay}]
    state.optimizer = make_optimizer(groups, settings)


def close_probe(run: Run, state: TrainState) -> None:
    """End the probe: give all ranks rank 0's head, and unfreeze what learns in the first stage."""
    run.world.broadcast_module(run.model.module)
    freeze_parameters(run.model.module, run.stages[0].frozen)
    state.begin_training(optimizer_of(run.model, run.config.optim, run.plan.lr), run.plan)
