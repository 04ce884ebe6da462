"""Averages of checkpoints' weights, with batch norm's statistics that fit them, and their metrics."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import Log
from ddp_ft.data.batch import samples_of
from ddp_ft.data.splits.record import Splits
from ddp_ft.data.workers import default_workers
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.inference.scoring import make_loader, make_scorer
from ddp_ft.inference.trained_model import Trained
from ddp_ft.models.batch_norm import batch_statistics
from ddp_ft.models.precision import autocast
from ddp_ft.run_folder.checkpoints import checkpoint_weights, quality_of, score_of
from ddp_ft.run_folder.model_folder import restore_weights

Weights = dict[str, Tensor]
# Reads the weights of a checkpoint.
Read = Callable[[Path], Weights]


def mean_weights(
    checkpoints: Sequence[Path], watched: Collection[str] = (), read: Read = checkpoint_weights
) -> tuple[Weights, set[str]]:
    """The mean of the checkpoints' weights, and which of the `watched` ones differ between the checkpoints.

    Floating point tensors are summed in float64 and keep their dtype; others are those of the last checkpoint.
    """
    sums: Weights = {}
    first: Weights = {}
    changing: set[str] = set()
    for folder in checkpoints:
        weights = read(folder)
        first = first or weights
        if strangers := sorted(weights.keys() ^ first.keys()):
            raise UserError(f"{folder} is of another model than {checkpoints[0]}: {', '.join(strangers[:3])}.")
        changing |= {name for name in watched if not torch.equal(weights[name], first[name])}
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                sums[name] = sums[name] + tensor.double() if name in sums else tensor.double()
    means = {name: (total / len(checkpoints)).to(first[name].dtype) for name, total in sums.items()}
    return {**weights, **means}, changing


class Averager:
    """Computes averages and their metrics: a model of the run, and the run's data if it is there. `read` reads its
    checkpoints."""

    def __init__(
        self, trained: Trained, splits: Splits | None, device: torch.device, config: RunConfig,
        read: Read = checkpoint_weights,
    ) -> None:  # fmt: skip
        self.trained = trained
        self.read = read
        self.splits = splits
        self.device = device
        self.metric = config.eval.metric or trained.task.primary_metric
        self.is_higher_better = trained.task.higher_is_better(self.metric)
        self.scorer = make_scorer(trained, World(0, 1, 0, device))
        workers = default_workers(device.type, 1)
        self.load = partial(make_loader, trained=trained, world=self.scorer.world, workers=workers)

    def average(self, checkpoints: Sequence[Path], log: Log | None = None) -> Weights:
        """The mean of these checkpoints, oldest first, with statistics recomputed for it if the data is there."""
        module = self.trained.module
        weights, changing = mean_weights(checkpoints, batch_statistics(module), self.read)
        if not changing:
            return weights
        if self.splits is None:
            if log:
                log("Warning: batch norm's statistics are averaged, not recomputed, because there is no data (--data).")
            return weights
        restore_weights(module, weights)
        self._recompute_statistics({name.rpartition(".")[0] for name in changing})
        return {**weights, **{name: tensor.detach().cpu().clone() for name, tensor in batch_statistics(module).items()}}

    @torch.no_grad()
    def _recompute_statistics(self, names: Collection[str]) -> None:
        """Set the layers' running mean and variance to those of the training set, without augmentation.

        As torch.optim.swa_utils.update_bn, but images count alike, and all other layers stay in evaluation mode.
        """
        assert self.splits is not None
        trained, seen = self.trained, 0
        layers = [cast(nn.modules.batchnorm._NormBase, trained.module.get_submodule(name)) for name in names]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.train().reset_running_stats()
        for batch in self.load(self.splits.train):
            size = samples_of(batch)
            if size == 1 and seen:
                continue  # a single value has no variance
            seen += size
            for layer in layers:
                layer.momentum = size / seen
            with autocast(self.device, trained.precision):
                trained.call(trained.module, self.scorer.prepare(batch))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.eval().momentum = momentum

    def measure(self, weights: Weights) -> dict[str, float]:
        """Validation metrics of these weights."""
        assert self.splits is not None
        restore_weights(self.trained.module, weights)
        return self.scorer.evaluate(self.load(self.splits.val), len(self.splits.val)).metrics

    def greedy(self, found: Sequence[Path], log: Log) -> list[Path]:
        """A greedy soup (arXiv 2203.05482): from the best checkpoint on, each is added if validation does not fall."""
        scores = {}
        for checkpoint in found:
            metrics = self.measure(self.read(checkpoint))
            scores[checkpoint] = score_of(self.trained.task, self.metric, metrics)
            log(f"{checkpoint.name}: {in_words(metrics)}")
        first, *others = sorted(found, key=lambda checkpoint: scores[checkpoint], reverse=True)
        chosen, score = [first], scores[first].quality
        log(f"before, {first.name} alone: {self._as_text(score)}")
        for checkpoint in others:
            candidate = sorted([*chosen, checkpoint])
            new = quality_of(self.trained.task, self.metric, self.measure(self.average(candidate)))
            log(f"with {checkpoint.name}: {self._as_text(new)}, {'added' if new >= score else 'left out'}")
            if new >= score:
                chosen, score = candidate, new
        return chosen

    def _as_text(self, score: float) -> str:
        return f"{self.metric} {score if self.is_higher_better else -score:.4f}"


def in_words(metrics: dict[str, float]) -> str:
    """Metrics for a line of output."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
