"""A step of a run once more, in one process, with a close look at its numbers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ddp_ft.config.loading import make_config, read_config_file
from ddp_ft.contracts import LABEL, TRAIN, Batch, Task
from ddp_ft.data.rng import derive_seed, seed_masks
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import World, connect
from ddp_ft.errors import UserError, printable
from ddp_ft.inference.trained_model import refuse_code_inside
from ddp_ft.models.blocks import block_depths
from ddp_ft.models.precision import autocast, resolve_precision
from ddp_ft.run_folder.bad_batches import BadBatches
from ddp_ft.run_folder.checkpoints import load_checkpoint
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.run_folder.model_folder import restore_weights
from ddp_ft.training.build import compose
from ddp_ft.training.phases import enter_stage, open_phase, stage_at
from ddp_ft.training.state import Job, Phase, Request
from ddp_ft.training.step import Learner

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Start:
    """What the step begins with: weights, the scale of the loss (fp16), and a line that says whose they are."""

    weights: dict[str, Tensor] | None
    loss_scale: float
    source: str


@dataclass
class _Findings:
    """What was seen. Names of layers are those of modules and parameters; "" where all was finite."""

    rows: list[tuple[int, int, float, int, int]] = field(default_factory=list)  # position, index, loss, least, most
    loss: float = 0.0
    weight: float = 0.0
    activation: str = ""
    gradient: str = ""

    @property
    def is_finite(self) -> bool:
        """Whether nothing was met that is not."""
        return not self.activation and not self.gradient and _finite(self.loss)


def replay_step(run: Path, step: int, data: Path | None, device_name: str, launch: Launch, say: Say) -> bool:
    """Tell of a step of a run, counted from 1 as in metrics.jsonl; gives whether all of it is finite.

    The step is cut as it was when it ran: into the shares of all ranks, one after the other, and their micro-batches.
    Raises UserError where RUN is no run, STEP none of its steps, or the data is not there or another.
    """
    if launch.world_size > 1:
        raise UserError(f"replay runs as one process, not as {launch.world_size}.", "Start it without torchrun.")
    folder = RunFolder(run)
    plan = folder.read_json("plan.json")
    if plan is None or not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder: it has no config.yaml or no plan.json.", "Expected runs/NAME.")
    record = BadBatches(run).read(step)
    device = pick_device(device_name, launch)
    with connect(launch, device, timeout_minutes=1) as world:
        job = _compose(folder, plan, data, world, launch, say)
        _check_step(job, step)
        start = _start(job, run, step, record)
        if start.weights is not None:
            restore_weights(job.built.module, start.weights)
        _say_what(job, step, start, record or plan, say)
        findings, learner = _run_again(job, step - 1, record or plan, start.loss_scale)
        _tell(job, findings, learner, record, say)
    return findings.is_finite


def _compose(folder: RunFolder, plan: dict[str, Any], data: Path | None, world: World, launch: Launch, say: Say) -> Job:
    """The run's parts as it stored them, but for where it computes."""
    here: dict[str, Any] = {"compute.device": world.device.type, "data.workers": 0}
    if data is not None:
        here["data.path"] = str(data)
    try:
        here["compute.precision"] = resolve_precision(plan["precision"], world.device)
    except UserError as error:
        here["compute.precision"] = "fp32"
        say(f"Note: the run computed in {plan['precision']}; here it is fp32. {error.message}")
    if plan["device"] != world.device.type:
        say(f"Note: the run was on {plan['device']}, this is {world.device.type}: the last digits differ.")
    layers = (read_config_file(folder.path / "config.yaml"), here)
    config = make_config(*layers, recipe=plan["recipe"])
    refuse_code_inside(folder.path, [config.model.name, config.head.name, config.loss.name, config.eval.extra])
    if config.freeze.cache_features:
        raise UserError(
            f"{folder.path} trained its head on features (freeze.cache_features); replay is for steps on pictures."
        )
    job, _ = compose(config, Request(folder.path, layers), world, launch)
    job.progress.phase = TRAIN
    return job


def _check_step(job: Job, step: int) -> None:
    total = job.plan.total_steps
    if not 1 <= step <= total:
        raise UserError(f"{job.folder.path} has no step {step}.", f"Its steps are 1 to {total}, as in metrics.jsonl.")


def _start(job: Job, run: Path, step: int, record: dict[str, Any] | None) -> _Start:
    """The weights of the bad step, else of the newest checkpoint before it, else those that the run began with."""
    file = BadBatches(run).weights_file(step)
    scale = record["loss_scale"] if record else None
    if file is not None:
        return _Start(_load(file), scale or 1.0, f"those that step {step} began with")
    before = [folder for folder in job.checkpoints.complete() if _steps(folder) < step]
    if before:
        weights, state = load_checkpoint(before[-1])
        kept = float(state.get("scaler", {}).get("scale", 1.0))
        passed = step - 1 - _steps(before[-1])
        late = "" if not passed else f", {passed} steps before step {step} began"
        return _Start(weights, scale or kept, f"of the checkpoint {before[-1].name}{late}")
    late = "" if step == 1 and not job.config.probe.epochs else ", as no checkpoint from before the step is left"
    return _Start(None, scale or 1.0, f"those that the run began with{late}")


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except Exception as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from None


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("_")[2])


def _run_again(job: Job, step: int, cut: dict[str, Any], loss_scale: float) -> tuple[_Findings, Learner]:
    """The forward and backward passes of all ranks' shares of a step, counted from 0; gradients are left in place."""
    job.plan = replace(job.plan, micro_batch=cut["micro_batch"], lowered=cut.get("lowered"))
    phase = open_phase(job)
    for stage in range(1, stage_at(job, step) + 1):
        enter_stage(job, stage)
    learner, findings = phase.learner, _Findings()
    learner.set_training()
    job.built.module.zero_grad(set_to_none=True)
    with _watching(job.built.module, findings):
        for rank in range(cut["world_size"]):
            share = open_phase(replace(job, world=World(rank, cut["world_size"], 0, job.world.device)))
            seed_masks(derive_seed(job.config.seed, step, share.noise), job.world.device)
            for batch in _micro_batches(share, step):
                _look(learner, batch, findings, loss_scale)
    divisor = loss_scale * max(findings.weight, 1e-12)
    for parameter in job.built.module.parameters():
        if parameter.grad is not None:
            parameter.grad.div_(divisor)
    learner.penalise()
    return findings, learner


def _micro_batches(phase: Phase, step: int) -> list[Batch]:
    with closing(phase.batches(step)) as batches:
        return next(batches)


def _look(learner: Learner, batch: Batch, findings: _Findings, loss_scale: float) -> None:
    """One micro-batch forwards and backwards, as `Learner.step` does it, and each of its pictures on its own."""
    prepared = learner.prepare(batch)
    with autocast(learner.world.device, learner.precision):
        outputs = learner.replica(learner.inputs(prepared))
    loss, weight = learner.task.loss(outputs, prepared)
    torch.autograd.backward(loss * loss_scale)
    findings.loss += float(loss.detach())
    findings.weight += float(weight)
    pixels = batch["image"].flatten(1)
    for place, each in enumerate(_losses(learner.task, outputs.detach(), prepared)):
        if float(batch["weight"][place]) or len(batch["weight"]) > 1:  # a lone sample of weight 0 is a ghost
            position, index = int(batch["position"][place]), int(batch["index"][place])
            findings.rows.append((position, index, each, int(pixels[place].min()), int(pixels[place].max())))


def _losses(task: Task, outputs: Tensor, batch: Batch) -> Iterator[float]:
    """Each sample's own loss: that of the batch in which it alone has an output and a weight."""
    for place in range(len(outputs)):
        alone = torch.zeros_like(outputs)  # finite losses for the others: 0 times NaN would be NaN
        alone[place] = outputs[place]
        weight = torch.zeros_like(batch["weight"])
        weight[place] = 1
        loss, total = task.loss(alone, {**batch, "weight": weight})
        yield float(loss) / max(float(total), 1e-12)


@contextmanager
def _watching(module: nn.Module, findings: _Findings) -> Iterator[None]:
    """Within the block the first activation and the first gradient that are not finite are noted."""

    def after_forward(name: str) -> Callable[..., None]:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            is_bad = isinstance(output, Tensor) and not bool(torch.isfinite(output).all())
            findings.activation = findings.activation or (name if is_bad else "")

        return look

    def after_backward(name: str) -> Callable[[Tensor], None]:
        def look(parameter: Tensor) -> None:
            is_bad = parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
            findings.gradient = findings.gradient or (name if is_bad else "")

        return look

    leaves = [(name, each) for name, each in module.named_modules() if not any(each.children())]
    handles: list[Any] = [each.register_forward_hook(after_forward(name)) for name, each in leaves]
    learning = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
    for name, each in learning:
        handles.append(each.register_post_accumulate_grad_hook(after_backward(name)))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _say_what(job: Job, step: int, start: _Start, cut: dict[str, Any], say: Say) -> None:
    epoch = (step - 1) // job.plan.steps_per_epoch
    size = cut["lowered"][1] if cut.get("lowered") else cut["micro_batch"]
    micro = f", micro-batches of {size}" if size else ""
    say(f"Step {step} of {job.folder.path}, in epoch {epoch + 1}: {cut['world_size']} shares{micro}")
    say(f"Weights: {start.source}")


def _tell(job: Job, findings: _Findings, learner: Learner, record: dict[str, Any] | None, say: Say) -> None:
    source, schema = job.splits.train, job.splits.schema
    rows = [["position", "label", "loss", "finite", "pixels", "picture"]]
    for position, index, loss, least, most in sorted(findings.rows):
        target = source.targets[index].tolist()
        label = schema.names[target] if schema.kind == LABEL else str(target)
        finite = "yes" if _finite(loss) else "NO"
        path = printable(source.name(index))
        rows.append([str(position), printable(label), f"{loss:.5g}", finite, f"{least}..{most}", path])
    say("\n".join(["", *_columns(rows), ""]))
    norms = list(_gradient_norms(job))
    say("\n".join([*_columns([["depth", "gradient norm", "finite", "layers"], *norms]), ""]))
    if findings.activation:
        say(f"First layer whose output is not finite: {findings.activation}")
    if findings.gradient:
        say(f"First parameter, from the loss backwards, whose gradient is not finite: {findings.gradient}")
    total = _norm([p.grad for group in learner.optimizer.param_groups for p in group["params"] if p.grad is not None])
    say(f"Loss {findings.loss / max(findings.weight, 1e-12):.6g}, gradient norm {total:.6g} before clipping")
    if record is not None:
        say(f"The run had: loss {record['loss']:.6g}, gradient norm {record['grad_norm']:.6g}")
    say("All is finite." if findings.is_finite else "Not all is finite.")


def _gradient_norms(job: Job) -> Iterator[list[str]]:
    """A row for each depth of the network, the stem first and the head last."""
    depths = block_depths(job.built.module, job.built.head)
    learning = [(depths[name], name, p.grad) for name, p in job.built.module.named_parameters() if p.grad is not None]
    learning.sort(key=lambda each: each[0])
    for depth, group in groupby(learning, key=lambda each: each[0]):
        members = list(group)
        norm = _norm([gradient for _, _, gradient in members if gradient is not None])
        yield [str(depth), f"{norm:.5g}", "yes" if _finite(norm) else "NO", _label([name for _, name, _ in members])]


def _norm(gradients: Sequence[Tensor]) -> float:
    return float(torch.stack([gradient.float().norm() for gradient in gradients]).norm()) if gradients else 0.0


def _label(names: Sequence[str]) -> str:
    """What the names have in common, else the first and the last."""
    parts = zip(*(name.split(".") for name in names), strict=False)
    common = ".".join(each[0] for each in takewhile(lambda each: len(set(each)) == 1, parts))
    return common or f"{names[0]} ... {names[-1]}"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return ["  ".join([*(cell.rjust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
