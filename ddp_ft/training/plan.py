"""All settings that are resolved for a run and its machine, in one frozen value; and the fixed rules for it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ddp_ft.config.schema import RunConfig, ScheduleConfig
from ddp_ft.contracts import BuiltModel, Log
from ddp_ft.data.workers import default_workers
from ddp_ft.distributed.world import Machine
from ddp_ft.errors import UserError
from ddp_ft.models.precision import resolve_format, resolve_precision
from ddp_ft.plugins import digest_of
from ddp_ft.run_folder.contents import Damaged, damaged, keys_of, problem_in, read_content
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.training.course import BEST, Course, choose_course
from ddp_ft.training.schedule import Schedule
from ddp_ft.training.shares import check_shares

# A restart that changes one of these is not of grade a: the same curve or the same samples, but other bits.
BIT_FIELDS = ("device", "world_size", "micro_batch", "threads")
# What stays equal with each grade, in short; the README has the whole.
GRADES = {"a": "same bits", "b": "same curve up to rounding", "c": "same samples in each step"}


@dataclass(frozen=True)
class Plan:
    """What `auto` became and what follows from the sizes. Written to plan.json.

    `lowered`: from how many images of a micro-batch to how many, since a process ran out of memory. `tuned`: the keys
    that were decided by measuring, with their values; `measured`: the rows that led to them. Both hold for later
    starts. `inputs`: what the processor had to know of the training set (`Processor.measure`). `code`: the SHA-256 of
    each file of the user's own, by what names it. `epochs`, and of them those from one evaluation to the next
    (`evaluation_epochs`), `ema_decay` and `choice` are the run's `Course`, `why_epochs` its reason. `rate_factors` are
    those of the model (None: not known), `anchors` is a hash of what optim.l2_sp pulls to, and `base` one of the
    weights that an adapter is on: all are of the weights that the run began with, whatever --weights names by now.
    """

    recipe: str
    task: str
    device: str
    world_size: int
    threads: int
    micro_batch: int | None
    workers: int
    precision: str
    channels_last: bool
    train_samples: int
    val_samples: int
    steps_per_epoch: int
    total_steps: int
    lr: float
    grade_elsewhere: str
    lowered: tuple[int, int] | None = None
    tuned: dict[str, Any] = field(default_factory=dict)
    measured: list[dict[str, Any]] = field(default_factory=list)
    inputs: dict[str, Any] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    epochs: int = 0
    evaluation_epochs: int = 1
    ema_decay: float = 0.0
    choice: str = BEST
    why_epochs: str = ""
    rate_factors: dict[str, float] | None = None
    anchors: str = ""
    base: str = ""

    @property
    def cut(self) -> int | None:
        """The most images of a forward pass; None: a process's whole share of the batch."""
        return self.lowered[1] if self.lowered else self.micro_batch

    def after(self, earlier: "Plan | None") -> "Plan":
        """Return the plan with the micro-batch that an earlier start lowered, if that was on the same kind of
        machine."""
        machine = ("device", "world_size", "micro_batch")
        if earlier is None or any(getattr(earlier, name) != getattr(self, name) for name in machine):
            return self
        return replace(self, lowered=earlier.lowered)

    def with_beginning(self, factors: Mapping[str, float], anchors: str, base: str, earlier: "Plan | None") -> "Plan":
        """Return the plan with what holds of the weights that the run began with. UserError if these are others now
        than at an `earlier` start, and optim.l2_sp pulls to them, or an adapter is on them."""
        pairs = {"optim.l2_sp pulls to them": (earlier.anchors, anchors)} if earlier else {}
        pairs |= {"the run's adapter belongs to those": (earlier.base, base)} if earlier else {}
        for why, (before, now) in pairs.items():
            if before not in ("", now):
                raise UserError(
                    f"--weights holds other weights than when the run began, and {why}.",
                    "Bring back the file of then, or begin another run with --run-dir.",
                )
        return replace(self, rate_factors=dict(factors), anchors=anchors, base=base)

    def to_mapping(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> "Plan":
        """Invert `to_mapping`; fields of later versions are left out. TypeError if a field is missing."""
        known = {each.name: values[each.name] for each in fields(Plan) if each.name in values}
        lowered = known.pop("lowered", None)
        return Plan(**known, lowered=tuple(lowered) if lowered else None)

    def changes_from(self, earlier: "Plan") -> list[str]:
        """Return what differs from an earlier start and changes bits, as 'name: old -> new'."""
        pairs = [(name, getattr(earlier, name), getattr(self, name)) for name in BIT_FIELDS]
        return [f"{name}: {before} -> {now}" for name, before, now in pairs if before != now]


def changed_code(now: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """Return the references to code whose file has other bytes than before, both as `Plan.code`."""
    return [name for name, digest in now.items() if before.get(name, digest) != digest]


def read_plan(folder: RunFolder) -> Plan | None:
    """Return the plan of a run's newest start; None if there is none. UserError if it is damaged."""
    file, required = folder.path / "plan.json", keys_of(Plan, required=True)
    stored = read_content(file, dict, required)
    if stored is None:
        return None
    if problem := problem_in(stored, {name: kinds for name, kinds in keys_of(Plan).items() if name in stored}):
        raise damaged(file, problem)
    return Plan.from_mapping(stored)


def earlier_plan(folder: RunFolder, log: Log) -> Plan | None:
    """Return the plan of an earlier start; None if there is none, or a damaged one, which this start makes anew."""
    try:
        return read_plan(folder)
    except Damaged as error:
        log(f"Warning: {error.message} It is made anew, without what earlier starts have measured.")
        return None


class Sizes(NamedTuple):
    """Of a run: samples of the training and of the validation set, outputs of the model, and what these are: classes;
    and the kind of the samples."""

    train: int
    val: int
    outputs: int
    names: str
    kind: str = "image"


def make_plan(
    config: RunConfig, machine: Machine, built: BuiltModel, sizes: Sizes, earlier: Plan | None, **decided: Any
) -> Plan:
    """Return the plan of a run, after that of an earlier start if there was one; the model is in the mode in which it
    is trained. `decided`: the fields recipe, task, tuned, measured, inputs.
    UserError for what this machine or this data does not allow."""
    world, workers = machine.world, config.data.workers
    if config.train.batch_size < world.size:
        raise UserError(
            f"--batch-size {config.train.batch_size} is smaller than the {world.size} processes that share it.",
            "It is the global batch, images per optimizer step. Make it larger, or start fewer processes.",
        )
    assert sizes.train > 0  # `open_splits` refuses an empty training set
    check_shares(config, built, sizes.train, world.size)
    steps_per_epoch = math.ceil(sizes.train / config.train.batch_size)
    course = _course(config, sizes, earlier)
    total_steps = course.epochs * steps_per_epoch
    make_schedule(config.schedule, total_steps, steps_per_epoch)  # an impossible one is reported now
    return Plan(
        **decided,
        device=world.device.type,
        world_size=world.size,
        threads=torch.get_num_threads(),
        micro_batch=config.train.micro_batch,
        workers=default_workers(world.device.type, machine.launch.local_world_size) if workers is None else workers,
        precision=resolve_precision(config.compute.precision, world.device),
        channels_last=resolve_format(config.compute.memory_format, built.module),
        train_samples=sizes.train,
        val_samples=sizes.val,
        epochs=course.epochs,
        evaluation_epochs=course.evaluation_epochs,
        ema_decay=course.ema_decay,
        choice=course.choice,
        why_epochs=course.why,
        steps_per_epoch=steps_per_epoch,
        total_steps=min(total_steps, config.train.max_steps or total_steps),
        lr=config.optim.lr or (earlier.lr if earlier else _usual_rate(config, built)),
        code=_digests(config),
        grade_elsewhere="c" if has_rank_noise(built.module) or config.head.dropout else "b",
    ).after(earlier)


def _course(config: RunConfig, sizes: Sizes, earlier: Plan | None) -> Course:
    """The course of a run; what auto became at an earlier start holds for all."""
    found = choose_course(config, sizes.train, sizes.outputs, sizes.names, sizes.kind)
    if earlier is None:
        return found
    return Course(
        earlier.epochs if config.train.epochs is None else found.epochs,
        config.eval.every_epochs or earlier.evaluation_epochs,
        earlier.ema_decay if config.ema.decay is None else found.ema_decay,
        earlier.choice if config.eval.choose == "auto" else found.choice,
        found.why,
    )


def references_of(config: RunConfig) -> list[str]:
    """Return the settings that may name code of the user's own, but for the data."""
    named = (config.model.name, config.head.name, config.loss.name, config.eval.extra, config.augment.transform)
    return [name for name in named if name]


def _digests(config: RunConfig) -> dict[str, str]:
    found = {reference: digest_of(reference) for reference in references_of(config)}
    return {reference: digest for reference, digest in found.items() if digest}


def rate_at(config: RunConfig, plan: Plan, step: int, total_steps: int) -> float:
    """Return the base learning rate of a step, counted from 0, of a run of `total_steps`."""
    return plan.lr * make_schedule(config.schedule, total_steps, plan.steps_per_epoch).factor(step)


def make_schedule(config: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> Schedule:
    """Return the schedule of a run of that many steps. UserError for impossible milestones."""
    return Schedule(
        config.name, total_steps, round(config.warmup * total_steps), config.final_factor, steps_per_epoch,
        config.every_epochs, config.milestones, config.gamma, config.power,
    )  # fmt: skip


# AdamW's usual rates for fine-tuning. With batch norm, 1e-3 was as good as 3e-4 on small sets (docs/accuracy.md);
# transformers and other models with layer norm are tuned with about 1e-4 for batches of this size (arXiv 2111.06377 and
# 2106.10270). In proportion to their weights, which are smaller, and with a layer decay, 1e-3 is about that in the
# middle of the network, and 1e-4 was far too low (docs/accuracy.md).
RATE_WITH_BATCH_NORM, RATE_WITHOUT = 1e-3, 1e-4
# An adapter begins at 0 and is alone: ten times the rate of full tuning, as LoRA in general. On convolutions with batch
# norm 1e-2 was too much for one seed of two, and 3e-3 better than full tuning (docs/adapters.md).
RATE_OF_ADAPTER_WITH_BATCH_NORM, RATE_OF_ADAPTER = 3e-3, 1e-3


def _usual_rate(config: RunConfig, built: BuiltModel) -> float:
    if built.adapter is not None:
        return RATE_OF_ADAPTER_WITH_BATCH_NORM if _has_batch_norm(built.module) else RATE_OF_ADAPTER
    return usual_rate(built.module, config.optim.relative)


def usual_rate(module: nn.Module, is_relative: bool) -> float:
    """Return the learning rate that `auto` means where the weights themselves learn; `is_relative`: to their size."""
    return RATE_WITH_BATCH_NORM if is_relative or _has_batch_norm(module) else RATE_WITHOUT


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(each, _BatchNorm) for each in module.modules())


def has_rank_noise(module: nn.Module) -> bool:
    """Return whether the curve depends on the number of processes: batch norm in train mode, or random masks."""
    return any(m.training and (isinstance(m, _BatchNorm) or _masks_at_random(m)) for m in module.modules())


def _masks_at_random(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    name = type(module).__name__
    rates = {"DropPath": "drop_prob", "StochasticDepth": "p", "PatchDropout": "prob"}
    attribute = "p" if name.startswith("Dropout") else rates.get(name, "")
    return bool(getattr(module, attribute, 0)) if attribute else False


def describe_grade(plan: Plan, earlier: Plan | None) -> str:
    """Return the grade of equality that holds for this start, as one line."""
    if earlier is not None and (changed := plan.changes_from(earlier)):
        return f"{_graded(plan.grade_elsewhere)} from here on ({', '.join(changed)})"
    return f"{_graded('a')} on this machine, {_graded(plan.grade_elsewhere)} on another number of processes"


def _graded(grade: str) -> str:
    """A grade with its meaning."""
    return f"{grade} ({GRADES[grade]})"
