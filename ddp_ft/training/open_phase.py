"""The phases of a run, opened one after the other: the head alone on features, then the whole recipe."""

from ddp_ft.config.schema import OptimConfig
from ddp_ft.contracts import PROBE, Say
from ddp_ft.models.backbone import head_module
from ddp_ft.models.freezing import freeze_parameters
from ddp_ft.training.compile import OFF
from ddp_ft.training.data_phase import DataPhase
from ddp_ft.training.feature_phase import FeaturePhase
from ddp_ft.training.feature_sets import feature_sets
from ddp_ft.training.optim import groups_of, make_optimizer
from ddp_ft.training.phase import Phase
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState


def open_phase(run: Run, state: TrainState, say: Say) -> Phase:
    """The phase that the state is in, ready for the state's next step."""
    if state.progress.phase == PROBE:
        return _open_probe(run, state, say)
    if run.config.freeze.cache_features:
        return _open_on_features(run, state, say)
    phase = DataPhase(run, state)
    for stage in range(1, state.progress.stage + 1):
        phase.enter_stage(state, stage)
    state.load_optimizer()
    return phase


def _open_probe(run: Run, state: TrainState, say: Say) -> FeaturePhase:
    probe = run.config.probe
    head = head_module(run.model.module, run.model.head_path or "")
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    settings = OptimConfig(name="adamw", lr=probe.lr, weight_decay=probe.weight_decay)
    groups = [{"params": list(head.parameters()), "name": "head", "lr_scale": 1.0, "weight_decay": probe.weight_decay}]
    state.optimizer = make_optimizer(groups, settings)
    return _open_feature_phase(run, state, say)


def _open_on_features(run: Run, state: TrainState, say: Say) -> FeaturePhase:
    if run.config.compute.compile != OFF:
        say("Note: compute.compile does nothing here, as the head alone is trained, on cached features.")
    return _open_feature_phase(run, state, say)


def _open_feature_phase(run: Run, state: TrainState, say: Say) -> FeaturePhase:
    phase = FeaturePhase(run, state, *feature_sets(run, say))
    state.load_optimizer()
    return phase


def close_probe(run: Run, state: TrainState) -> None:
    """After the probe: all ranks have rank 0's head, and the parts learn that learn in the first stage."""
    run.world.broadcast_module(run.model.module)
    freeze_parameters(run.model.module, run.stages[0].frozen)
    state.begin_training(
        make_optimizer(groups_of(run.model, run.config.optim, run.plan.lr), run.config.optim), run.plan
    )
