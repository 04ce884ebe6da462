"""The parts of a run, composed from a configuration."""

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import PROBE, TRAIN, LoadReport
from ddp_ft.data.sampler import sampling_weights
from ddp_ft.data.splits.open import open_splits_of
from ddp_ft.data.splits.record import Splits
from ddp_ft.distributed.agreement import Agreement
from ddp_ft.distributed.world import Machine
from ddp_ft.models.prepare import load_and_place, prepare
from ddp_ft.run_folder.checkpoints import Checkpoints
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.tasks.registry import make_task, outputs_of
from ddp_ft.training.checks import check_alone, check_restorable, check_together
from ddp_ft.training.gradients import anchors_of, digest_of_anchors
from ddp_ft.training.malloc import keep_freed_memory
from ddp_ft.training.optim import optimizer_of, with_rate_factors
from ddp_ft.training.plan import Sizes, make_plan
from ddp_ft.training.progress import Progress
from ddp_ft.training.recipe import build, fit_inputs, settle_recipe
from ddp_ft.training.request import Request
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState


def compose(
    config: RunConfig, request: Request, machine: Machine, splits: Splits | None = None
) -> tuple[Run, TrainState, LoadReport]:
    """Return all parts of a run, its state before the first step, and what was loaded. Writes nothing. Collective.

    `splits` are its data, if that is open already. UserError for settings, data or a model that cannot be trained.
    """
    world, folder = machine.world, RunFolder(request.run_dir)
    if world.device.type == "cpu":
        keep_freed_memory()
    splits = splits or world.from_main(lambda: open_splits_of(request.run_dir, config))
    outputs, unit = outputs_of(config, splits.schema)
    built = build(config, outputs, unit)
    built, inputs = fit_inputs(built, config.data, splits.train, request.earlier, world)
    config, recipe, why = settle_recipe(config, request, built, len(splits.train))
    check_alone(config)
    task = make_task(config, splits.schema, splits.train.targets)
    task.higher_is_better(config.eval.metric or task.primary_metric)  # an unknown metric is reported now
    model, stages = prepare(built, config, task.initial_bias() if config.head.bias == "prior" else None, world)
    sizes = Sizes(len(splits.train), len(splits.val), outputs, task.words.names, splits.train.kind)
    plan = make_plan(
        config, machine, model, sizes, request.earlier,
        recipe=recipe, task=task.name, tuned=dict(request.tuned), measured=[dict(row) for row in request.measured],
        inputs=inputs,
    )  # fmt: skip
    check_together(config, model, splits, world.device)
    check_restorable(model, task)
    sampling = sampling_weights(config.data.sampling, splits.train.targets, splits.train.weights, splits.schema.kind)
    report = load_and_place(model, stages[0], config, world, plan.channels_last)
    model = with_rate_factors(model, config.optim, request.earlier.rate_factors if request.earlier else None)
    anchors = anchors_of(model.module, model.head) if config.optim.l2_sp else {}
    plan = plan.with_beginning(model.rate_factors, digest_of_anchors(anchors), report.base, request.earlier)
    run = Run(
        config=config, world=world, distributed=machine.launch.distributed, launched=machine.launch.started,
        folder=folder, splits=splits, task=task, model=model, plan=plan, why_recipe=why,
        stages=stages, anchors=anchors, sampling=sampling,
        prepare=model.processor.on_device(world.device, plan.channels_last),
        checkpoints=Checkpoints(folder.checkpoints, config.checkpoint.keep, config.checkpoint.keep_best),
        agreement=Agreement(world, machine.stop),
    )  # fmt: skip
    progress = Progress(phase=PROBE if config.probe.epochs else TRAIN)
    optimizer = optimizer_of(model, config.optim, plan.lr)
    return run, TrainState(model.module, optimizer, plan, progress, model.base), report
