"""Replays one step of a run, in one process, and reports its numbers in detail."""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddp_ft.contracts import Batch, Log, Task
from ddp_ft.data.rng import derive_seed, seed_masks
from ddp_ft.diagnostics.stored_run import compose_stored, start_of
from ddp_ft.distributed.world import Machine, World
from ddp_ft.errors import UserError, printable
from ddp_ft.models.blocks import block_depths
from ddp_ft.run_folder.bad_batches import read_bad_batch
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.run_folder.model_folder import restore_weights
from ddp_ft.training.batches import training_batches, training_order
from ddp_ft.training.data_phase import DataPhase
from ddp_ft.training.plan import read_plan
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState

# Into how many shares a step's batch was cut, and into micro-batches of how many images at most (None: whole shares).
_Cut = tuple[int, int | None]


@dataclass
class _Findings:
    """What was found in the step's passes. `activation`, `gradient`: the first module and parameter that was not
    finite, or "". `extent`: the heading of the samples' extent."""

    rows: list[tuple[int, int, float, str]] = field(default_factory=list)  # position, index, loss, extent
    extent: str = ""
    loss: float = 0.0
    weight: float = 0.0
    activation: str = ""
    gradient: str = ""

    @property
    def is_finite(self) -> bool:
        """Whether all was finite."""
        return not self.activation and not self.gradient and math.isfinite(self.loss)

    def look_at_output(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Note the module if it is the first whose output is not finite."""
        is_bad = isinstance(output, Tensor) and not bool(torch.isfinite(output).all())
        self.activation = self.activation or (name if is_bad else "")

    def look_at_gradient(self, name: str, parameter: Tensor) -> None:
        """Note the parameter if it is the first whose gradient is not finite."""
        is_bad = parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        self.gradient = self.gradient or (name if is_bad else "")


def replay_step(run_dir: Path, step: int, data: Path | None, here: Machine, log: Log) -> bool:
    """Report a step of a run, counted from 1 as in metrics.jsonl; return whether all of it is finite.

    The step is cut as it was when it ran: into the shares of all ranks, one after the other, and their micro-batches.
    Raises UserError if RUN is no run, STEP none of its steps, or the data is missing or has changed.
    """
    folder = RunFolder(run_dir)
    plan = read_plan(folder)
    if plan is None or folder.stored_config() is None:
        raise UserError(f"{run_dir} is no run folder: it has no config.yaml or no plan.json.", "Expected runs/NAME.")
    record = read_bad_batch(run_dir, step)
    run, state = compose_stored(folder, plan, data, here, log)
    if run.config.freeze.cache_features:
        raise UserError(
            f"{run_dir} trained its head on features (freeze.cache_features); replay is for steps on images."
        )
    total = run.plan.total_steps
    if not 1 <= step <= total:
        raise UserError(f"{run_dir} has no step {step}.", f"Its steps are 1 to {total}, as in metrics.jsonl.")
    start = start_of(run, step, record)
    if start.weights is not None:
        restore_weights(state.module, start.weights, state.base)
    cut: _Cut = (record["world_size"], record["micro_batch"]) if record else (plan.world_size, plan.cut)
    world_size, micro_batch = cut
    micro = f", micro-batches of {micro_batch}" if micro_batch else ""
    log(f"Step {step} of {run_dir}, in epoch {(step - 1) // plan.steps_per_epoch + 1}: {world_size} shares{micro}")
    log(f"Weights: {start.source}")
    findings = _run_again(run, state, step - 1, cut, start.loss_scale)
    _report(run, findings, record, log)
    return findings.is_finite


def _run_again(run: Run, state: TrainState, step: int, cut: _Cut, loss_scale: float) -> _Findings:
    """Run forward and backward on all ranks' shares of a step, counted from 0; gradients are left in place."""
    phase = DataPhase(run, state)
    for stage in range(1, phase.stage_at(step) + 1):
        phase.enter_stage(state, stage)
    learner, findings, (world_size, micro_batch) = phase.learner, _Findings(), cut
    learner.set_training()
    state.module.zero_grad(set_to_none=True)
    with _watching(state.module, findings):
        for rank in range(world_size):
            share = replace(run, world=World(rank, world_size, 0, run.world.device))
            seed_masks(derive_seed(run.config.seed, step, rank), run.world.device)
            with closing(training_batches(share, training_order(share), micro_batch, start=step)) as batches:
                for batch in next(batches):
                    _look(phase, batch, findings, loss_scale)
    divisor = loss_scale * max(findings.weight, 1e-12)
    for parameter in state.module.parameters():
        if parameter.grad is not None:
            parameter.grad.div_(divisor)
    learner.penalties.add_to_gradients()
    return findings


def _look(phase: DataPhase, batch: Batch, findings: _Findings, loss_scale: float) -> None:
    """Run a micro-batch forwards and backwards, as `Learner.step` does, and note the loss of each sample."""
    learner, processor = phase.learner, phase.run.model.processor
    prepared = learner.prepare(batch)
    outputs = learner.forward(prepared)
    loss, weight = learner.task.loss(outputs, prepared)
    torch.autograd.backward(loss * loss_scale)
    findings.loss += float(loss.detach())
    findings.weight += float(weight)
    for place, each in enumerate(_losses(learner.task, outputs.detach(), prepared)):
        if float(batch["weight"][place]) or len(batch["weight"]) > 1:  # a lone sample of weight 0 is a ghost
            position, index = int(batch["position"][place]), int(batch["index"][place])
            findings.extent, extent = processor.extent(batch, place)
            findings.rows.append((position, index, each, extent))


def _losses(task: Task, outputs: Tensor, batch: Batch) -> Iterator[float]:
    """Yield each sample's own loss: that of the batch in which it alone has an output and a weight."""
    for place in range(len(outputs)):
        alone = torch.zeros_like(outputs)  # finite losses of the others: 0 times NaN would be NaN
        alone[place] = outputs[place]
        weight = torch.zeros_like(batch["weight"])
        weight[place] = 1
        loss, total = task.loss(alone, {**batch, "weight": weight})
        yield float(loss) / max(float(total), 1e-12)


@contextmanager
def _watching(module: nn.Module, findings: _Findings) -> Iterator[None]:
    """Within the block the first activation and the first gradient that are not finite are noted."""
    handles: list[Any] = []
    for name, each in module.named_modules():
        if not any(each.children()):
            handles.append(each.register_forward_hook(partial(findings.look_at_output, name)))
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            look = partial(findings.look_at_gradient, name)
            handles.append(parameter.register_post_accumulate_grad_hook(look))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _report(run: Run, findings: _Findings, record: dict[str, Any] | None, log: Log) -> None:
    source, names = run.splits.train, run.task.names
    rows = [["position", "label", "loss", "finite", findings.extent, "image"]]
    for position, index, loss, extent in sorted(findings.rows):
        target = source.targets[index].tolist()
        label = names[target] if isinstance(target, int) else str(target)  # a class by its name
        path = printable(source.name(index))
        rows.append([str(position), printable(label), f"{loss:.5g}", _yes_if_finite(loss), extent, path])
    log("\n".join(["", *_columns(rows), ""]))
    norms = list(_gradient_norms(run))
    log("\n".join([*_columns([["depth", "gradient norm", "finite", "layers"], *norms]), ""]))
    if findings.activation:
        log(f"First layer whose output is not finite: {findings.activation}")
    if findings.gradient:
        log(f"First parameter, from the loss backwards, whose gradient is not finite: {findings.gradient}")
    total = _norm([p.grad for p in run.model.module.parameters() if p.grad is not None])
    log(f"Loss {findings.loss / max(findings.weight, 1e-12):.6g}, gradient norm {total:.6g} before clipping")
    if record is not None:
        log(f"The run had: loss {record['loss']:.6g}, gradient norm {record['grad_norm']:.6g}")
    log("All is finite." if findings.is_finite else "Not all is finite.")


def _gradient_norms(run: Run) -> Iterator[list[str]]:
    """Yield a row for each depth of the network, the stem first and the head last."""
    depths = block_depths(run.model.module, run.model.head)
    learning = [(depths[name], name, p.grad) for name, p in run.model.module.named_parameters() if p.grad is not None]
    learning.sort(key=lambda each: each[0])
    for depth, group in groupby(learning, key=lambda each: each[0]):
        members = list(group)
        norm = _norm([gradient for _, _, gradient in members if gradient is not None])
        yield [str(depth), f"{norm:.5g}", _yes_if_finite(norm), _label([name for _, name, _ in members])]


def _norm(gradients: Sequence[Tensor]) -> float:
    return float(torch.stack([gradient.float().norm() for gradient in gradients]).norm()) if gradients else 0.0


def _label(names: Sequence[str]) -> str:
    """Return what the names have in common, else the first and the last."""
    parts = zip(*(name.split(".") for name in names), strict=False)
    common = ".".join(each[0] for each in takewhile(lambda each: len(set(each)) == 1, parts))
    return common or f"{names[0]} ... {names[-1]}"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return ["  ".join([*(cell.rjust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]


def _yes_if_finite(value: float) -> str:
    return "yes" if math.isfinite(value) else "NO"
