"""The parts of a run, composed from a configuration."""

from dataclasses import replace

import torch

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import PROBE, TRAIN, BuiltModel, LoadReport, Preprocess, Task
from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.image.mixup import Mixing
from ddp_ft.data.image.nvjpeg import NVJPEG, check_nvjpeg
from ddp_ft.data.sampler import sampling_weights
from ddp_ft.data.splits.open import open_splits
from ddp_ft.data.splits.record import Splits
from ddp_ft.data.workers import default_workers
from ddp_ft.distributed.agreement import Agreement
from ddp_ft.distributed.environment import Launch, launch_started
from ddp_ft.distributed.stop_request import StopRequest
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.features.check import check_features
from ddp_ft.models import build_model
from ddp_ft.models.blocks import block_depths
from ddp_ft.models.freezing import TrainingMode
from ddp_ft.models.head import check_head
from ddp_ft.models.prepare import load_and_place, prepare
from ddp_ft.run_folder.checkpoints import Checkpoints
from ddp_ft.run_folder.folder import RunFolder, check_same_data
from ddp_ft.tasks.registry import make_task
from ddp_ft.training.ema import Ema
from ddp_ft.training.gradients import anchors_of
from ddp_ft.training.malloc import keep_freed_memory
from ddp_ft.training.optim import ParamGroups, check_optimizer, make_optimizer, param_groups
from ddp_ft.training.plan import choose_recipe, make_plan
from ddp_ft.training.profiler import FOLDER as PROFILE
from ddp_ft.training.profiler import StepTrace, parse_steps
from ddp_ft.training.progress import LossWindow, Progress
from ddp_ft.training.state import Job, Request


def compose(
    config: RunConfig, request: Request, world: World, launch: Launch, stop: StopRequest | None = None,
    splits: Splits | None = None,
) -> tuple[Job, LoadReport]:  # fmt: skip
    """All parts of a run, at its first step; nothing is written yet. `splits` are its data, if that is open already."""
    if world.device.type == "cpu":
        keep_freed_memory()
    folder = RunFolder(request.run_dir)
    splits = splits or world.from_main(lambda: _open_data(folder, config))
    config, built, recipe, why = _build(config, request, folder, splits)
    check_optimizer(config.optim.name)
    trace = StepTrace(parse_steps(config.log.profile), folder.path / PROFILE, world.rank, world.device)
    task = make_task(config, splits.schema, splits.train.targets)
    task.higher_is_better(config.eval.metric or task.primary_metric)
    built, stages = prepare(built, config, task.initial_bias() if config.head.bias == "prior" else None, world)
    module = built.module
    built = replace(built, preprocess=_decoded_as(config.data.decoder, built.preprocess))
    workers = config.data.workers
    if workers is None:
        workers = default_workers(world.device.type, launch.local_world_size)
    plan = make_plan(config, recipe, world, module, task.name, (len(splits.train), len(splits.val)), workers)
    plan = replace(plan, tuned=dict(request.tuned), measured=[dict(row) for row in request.measured])
    _check_combinations(config, built, task, world.device)
    sampling = sampling_weights(config.data.sampling, splits.train.targets, splits.train.weights, splits.schema.kind)
    report = load_and_place(built, stages[0], config, world, plan.channels_last)
    anchors = anchors_of(module, built.head) if config.optim.l2_sp else {}
    optimizer = make_optimizer(groups_of(built, config, plan.lr), config.optim)
    job = Job(
        config=config,
        world=world,
        distributed=launch.distributed,
        launched=launch_started(launch),
        folder=folder,
        splits=splits,
        task=task,
        built=built,
        plan=plan,
        why_recipe=why,
        stages=stages,
        training_mode=TrainingMode(module, config.model.batch_norm),
        optimizer=optimizer,
        anchors=anchors,
        sampling=sampling,
        ema=Ema(module, config.ema.decay) if config.ema.decay else None,
        prepare=DeviceTransform(built.preprocess, world.device, plan.channels_last),
        progress=Progress(phase=PROBE if config.probe.epochs else TRAIN),
        window=LossWindow(torch.zeros(2, device=world.device)),
        checkpoints=Checkpoints(folder.checkpoints, config.checkpoint.keep, config.checkpoint.keep_best),
        agreement=Agreement(world, stop or StopRequest()),
        trace=trace,
    )
    return job, report


def _open_data(folder: RunFolder, config: RunConfig) -> Splits:
    stored = folder.read_json("split.json")
    splits = open_splits(config.data, config.seed, stored, config.task)
    check_same_data(folder, stored, splits.fingerprint)
    return splits


def _build(
    config: RunConfig, request: Request, folder: RunFolder, splits: Splits
) -> tuple[RunConfig, BuiltModel, str, str]:
    """The configuration with its recipe, the model, and the recipe's name and reason."""
    assert config.model.name is not None  # the command line has checked
    check_head(config.head.name)
    torch.manual_seed(config.seed)
    model = config.model
    outputs = len(splits.schema.names)
    built = build_model(model.name or "", outputs, model.image_size, model.weights, config.head, model.drop_path)
    if config.recipe != "auto":
        return config, built, config.recipe, "as asked for"
    recipe, why = choose_recipe(config, built, len(splits.train))
    return request.config(recipe), built, recipe, why


def _decoded_as(decoder: str, preprocess: Preprocess) -> Preprocess:
    # What the GPU decodes is to train on; evaluation is the same on every machine.
    return replace(preprocess, decoder={"auto": "shrink", NVJPEG: "full"}.get(decoder, decoder))


def _check_combinations(config: RunConfig, built: BuiltModel, task: Task, device: torch.device) -> None:
    """UserError for settings that are right alone and wrong together."""
    mixing = Mixing.of(config.augment)
    mixes = mixing is not None
    if mixing is not None:
        mixing.check(config.train.batch_size, config.train.micro_batch)
    if mixes and task.name == "regression":
        raise UserError(
            "augment.mixup and augment.cutmix mix classes; this task is regression.",
            "Leave --mixup and --cutmix at 0, or use another --augment.",
        )
    if config.optim.l2_sp and config.model.weights == "none":
        raise UserError(
            "optim.l2_sp pulls towards the pretrained weights, but --weights is none.",
            "Leave optim.l2_sp at 0; optim.weight_decay pulls towards 0.",
        )
    check_nvjpeg(config, built.preprocess, device)
    check_features(config, built)


def groups_of(built: BuiltModel, config: RunConfig, lr: float) -> ParamGroups:
    """The optimizer's groups of all parameters that learn now."""
    depths = block_depths(built.module, built.head) if config.optim.layer_decay < 1 else None
    return param_groups(built.module, built.head, replace(config.optim, lr=lr), depths)
