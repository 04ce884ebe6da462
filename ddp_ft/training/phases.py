"""The phases of a run, opened one after the other: the head alone on features, then the whole recipe, by stages."""

import copy
import gc
import math
from collections.abc import Callable, Generator, Iterator
from functools import partial

import torch
from torch import nn

from ddp_ft.config.schema import OptimConfig
from ddp_ft.contracts import PROBE, TRAIN, Batch, Evaluation, LabelledSource
from ddp_ft.data.image.mixup import Mixing
from ddp_ft.data.image.nvjpeg import NVJPEG, EncodedTransform
from ddp_ft.data.image.transforms import eval_transform, train_transform
from ddp_ft.data.loader import EvalLoader, TrainLoader
from ddp_ft.data.rng import derive_seed
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.distributed.agreement import Decision
from ddp_ft.distributed.ddp import replicate
from ddp_ft.distributed.world import World
from ddp_ft.evaluation.evaluator import EVAL_CHUNK, Scorer
from ddp_ft.features.check import check_size
from ddp_ft.features.dataset import FeatureSet, evaluate_head, feature_inputs, is_small, train_batches
from ddp_ft.features.extractor import Extractor
from ddp_ft.features.precompute import FOLDER, FeatureFiles, open_features, training_views
from ddp_ft.models.backbone import head_module
from ddp_ft.models.freezing import TrainingMode, freeze_parameters
from ddp_ft.training.build import groups_of
from ddp_ft.training.compile import eager
from ddp_ft.training.gradients import Penalties, clip
from ddp_ft.training.optim import extend_groups, make_optimizer, undecayed
from ddp_ft.training.plan import rate_at
from ddp_ft.training.schedule import lr_factor
from ddp_ft.training.state import Job, Phase
from ddp_ft.training.step import Learner, StepSums

# A step on features takes about a millisecond, and an agreement a good part of one.
STEPS_BETWEEN_AGREEMENTS = 20


def _quiet(text: str) -> None:
    """For those who have nobody to tell."""


def open_phase(job: Job, say: Callable[[str], None] = _quiet) -> Phase:
    """The phase that the job's progress is in, with the state of the checkpoint that it goes on from."""
    if job.progress.phase == PROBE:
        phase = _open_probe(job, say)
    elif job.config.freeze.cache_features:
        phase = _on_features(job, TRAIN, job.optimizer, job.config.train.batch_size, job.config.train.epochs, say)
    else:
        phase = _on_pictures(job)
    job.phase = phase
    if job.pending:
        _take_up(job, phase)
    return phase


def _take_up(job: Job, phase: Phase) -> None:
    for stage in range(1, job.progress.stage + 1):
        enter_stage(job, stage)
    phase.learner.optimizer.load_state_dict(job.pending["optimizer"])
    phase.learner.scaler.load_state_dict(job.pending["scaler"])
    job.pending = {}


def measure(job: Job, source: LabelledSource) -> Evaluation:
    """Evaluate the bare module, in its present state, over a source of pictures. Raises StopAgreed."""
    scorer = Scorer(job.built.module, job.task, job.prepare, job.world, job.plan.precision)
    with eager(job.built.module):
        return scorer.evaluate(_rounds(job, source), len(source))


def _rounds(job: Job, source: LabelledSource) -> Iterator[Batch]:
    """This rank's chunks of a source. Between two of them the ranks agree on whether to stop, which they do equally
    often by arithmetic: their numbers of chunks differ by one at most."""
    chunks = math.ceil(len(source) / EVAL_CHUNK)
    return job.agreement.in_rounds(_eval_loader(job, source), math.ceil(chunks / job.world.size))


def _eval_loader(job: Job, source: LabelledSource) -> EvalLoader:
    transform = eval_transform(job.built.preprocess)
    world, pin_memory = job.world, job.world.device.type == "cuda"
    return EvalLoader(source, transform, EVAL_CHUNK, world.size, world.rank, job.plan.workers, pin_memory)


def _sampler(job: Job, world: World, batch_size: int, seed: int, pairs: bool) -> GlobalOrderSampler:
    samples, weights = len(job.splits.train), job.sampling
    return GlobalOrderSampler(samples, batch_size, world.size, world.rank, seed, weights=weights, pairs=pairs)


def _training_source(job: Job) -> LabelledSource:
    """The training set; without its weights where the order follows them already, lest they count twice."""
    if job.config.data.sampling != "weighted":
        return job.splits.train
    source = copy.copy(job.splits.train)
    source.weights = None
    return source


def _on_pictures(job: Job) -> Phase:
    config, world = job.config, job.world
    mixing = Mixing.of(config.augment)
    seen = EncodedTransform if config.data.decoder == NVJPEG else train_transform
    sampler = _sampler(job, world, config.train.batch_size, config.seed, pairs=mixing is not None)
    replica = _replica(job)
    learner = _learner(job, replica, job.optimizer, world)

    def batches(start: int) -> Generator[list[Batch], None, None]:
        loader = TrainLoader(
            _training_source(job),
            seen(job.built.preprocess, config.augment),
            sampler,
            job.plan.cut,
            job.plan.workers,
            start_step=start,
            total_steps=job.plan.total_steps,
            pin_memory=world.device.type == "cuda",
            mixing=mixing,
        )
        return iter(loader)

    return Phase(
        TRAIN,
        learner,
        sampler,
        job.plan.total_steps,
        partial(rate_at, config, job.plan),
        world.rank,
        batches,
        lambda: measure(job, job.splits.val),
        lambda sums, flags, ends: job.agreement.decide(job.progress.step, sums.numbers(), ends),
    )


def _learner(job: Job, replica: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Learner:
    return Learner(
        replica=replica,
        task=job.task,
        inputs=job.task.inputs,
        optimizer=optimizer,
        prepare=job.prepare,
        world=world,
        precision=job.plan.precision,
        clip=partial(clip, config=job.config.train, head=_head_parameters(job)),
        penalise=_penalties(job),
        set_training=lambda: job.training_mode(),
        recomputes=job.config.compute.recompute,
    )


def enter_stage(job: Job, stage: int) -> None:
    """Let those parts of the model learn that learn in that stage; the optimizer keeps the state of the others."""
    assert job.phase is not None
    learner, module = job.phase.learner, job.built.module
    _let_replica_go(job)
    freeze_parameters(module, job.stages[stage].frozen)
    job.training_mode = TrainingMode(module, job.config.model.batch_norm)
    extend_groups(job.optimizer, groups_of(job.built, job.config, job.plan.lr))
    learner.replica = _replica(job)
    learner.penalise = _penalties(job)
    learner.begin()
    job.progress.stage = stage


def renew_replica(job: Job) -> None:
    """After a step that some rank could not finish: DDP cannot be used behind a backward pass that broke off."""
    assert job.phase is not None
    _let_replica_go(job)
    if job.world.device.type == "cuda":
        torch.cuda.empty_cache()
    job.phase.learner.replica = _replica(job)
    job.phase.learner.begin()


def _replica(job: Job) -> nn.Module:
    return replicate(job.built.module, job.world, job.distributed, job.config.compute.compress_gradients)


def _let_replica_go(job: Job) -> None:
    assert job.phase is not None
    job.phase.learner.replica = job.built.module
    gc.collect()  # the hooks of the old DDP stay on the parameters as long as it lives


def stage_at(job: Job, step: int) -> int:
    """Which stage of unfreezing a training step belongs to."""
    epoch = step // job.plan.steps_per_epoch
    return max(number for number, stage in enumerate(job.stages) if stage.epoch <= epoch)


def _open_probe(job: Job, say: Callable[[str], None]) -> Phase:
    probe = job.config.probe
    head = head_module(job.built.module, job.built.head_path or "")
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    settings = OptimConfig(name="adamw", lr=probe.lr, weight_decay=probe.weight_decay)
    groups = [{"params": list(head.parameters()), "name": "head", "lr_scale": 1.0, "weight_decay": probe.weight_decay}]
    optimizer = make_optimizer(groups, settings)
    return _on_features(job, PROBE, optimizer, probe.batch_size, probe.epochs, say)


def close_probe(job: Job) -> None:
    """After the probe: all ranks have rank 0's head, and the parts learn that learn in the first stage."""
    job.world.broadcast_module(job.built.module)
    freeze_parameters(job.built.module, job.stages[0].frozen)
    job.training_mode = TrainingMode(job.built.module, job.config.model.batch_norm)
    job.progress.phase, job.progress.step, job.phase = TRAIN, 0, None
    if job.ema is not None:
        job.ema.reset(job.built.module)


def _on_features(
    job: Job, name: str, optimizer: torch.optim.Optimizer, batch_size: int, epochs: int, say: Callable[[str], None]
) -> Phase:
    """A phase in which every rank trains the same head on the same features, and so none waits for another."""
    solo = World(0, 1, 0, job.world.device)
    train, val = _features(job, say)
    seed = derive_seed(job.config.seed, *name.encode())
    sampler = _sampler(job, solo, batch_size, seed, pairs=False)
    total_steps = epochs * sampler.steps_per_epoch
    head = head_module(job.built.module, job.built.head_path or "")
    learner = _learner(job, head, optimizer, solo)
    learner.inputs, learner.prepare, learner.set_training = feature_inputs, _as_it_is, lambda: _train_mode(head)
    learner.recomputes = False
    learner.recovers = False  # each rank is alone here; what one did, the others would not do
    learner.begin()
    probe_rate = job.config.probe.lr

    def measured() -> Evaluation:
        found: list[Evaluation] = []  # outputs are for rank 0 alone, metrics for all

        def compute() -> dict[str, float]:
            found.append(evaluate_head(head, val, job.task, EVAL_CHUNK, job.plan.precision))
            return found[0].metrics

        metrics = job.world.from_main(compute)
        return found[0] if found else Evaluation(metrics)

    return Phase(
        name,
        learner,
        sampler,
        total_steps if name == PROBE else job.plan.total_steps,
        (lambda step, total: probe_rate * lr_factor(step, total, "cosine")) if name == PROBE else _rate(job),
        0,
        lambda start: train_batches(train, sampler, start, total_steps, is_small(head, batch_size)),
        measured,
        lambda sums, flags, ends: _agree_at_times(job, sums, flags),
    )


def _features(job: Job, say: Callable[[str], None]) -> tuple[FeatureSet, FeatureSet]:
    """Of the training set, in all its views, and of the validation set; UserError if they are more than is allowed."""
    config, built, plan, train, val = job.config, job.built, job.plan, _training_source(job), job.splits.val
    cache = config.freeze
    check_size(built, cache.views * len(train) + len(val), cache.cache_gb)
    root = (cache.cache_dir or job.folder.path / FOLDER) if cache.cache_gb else None
    files = FeatureFiles(root, cache.cache_dir is None, built, plan.to_mapping(), job.splits.fingerprint)
    extractor = Extractor(
        module=built.module,
        head_path=built.head_path or "",
        task=job.task,
        prepare=job.prepare,
        world=job.world,
        precision=plan.precision,
        chunk=EVAL_CHUNK,
        threads=plan.threads,
        workers=plan.workers,
        in_rounds=job.agreement.in_rounds,
    )
    views = training_views(train, built.preprocess, config)
    return open_features(extractor, files, views, (val, eval_transform(built.preprocess), {}), say)


def _agree_at_times(job: Job, sums: StepSums, flags: list[float]) -> list[Decision]:
    """On features no step sums anything over ranks, and each is quick. What a step gave is the same on all anyway."""
    step, numbers = job.progress.step, sums.numbers()[: -len(flags)].tolist()
    if step % STEPS_BETWEEN_AGREEMENTS and step < job.steps_of_phase:
        flags = [0.0] * len(flags)
        return job.agreement.read(step, numbers, flags)
    return job.agreement.read(step, numbers, job.world.sum(torch.tensor(flags)).tolist())


def _head_parameters(job: Job) -> list[nn.Parameter]:
    return [parameter for name, parameter in job.built.module.named_parameters() if name in job.built.head]


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _train_mode(head: nn.Module) -> None:
    head.train()


def _rate(job: Job) -> Callable[[int, int], float]:
    return partial(rate_at, job.config, job.plan)


def _penalties(job: Job) -> Callable[[], None]:
    module, optim = job.built.module, job.config.optim
    penalties = Penalties(
        module.named_parameters(), job.built.head, optim.l1, optim.l2_sp, job.anchors, undecayed(module)
    )
    return penalties.add_to_gradients
