"""What batch norm asks of the processes' shares of a step: two samples where it has one value of each for a channel;
and, where it waits for all processes, as many forward passes on each."""

from torch.nn.modules.batchnorm import _BatchNorm

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import BuiltModel
from ddp_ft.data.micro_batches import uneven_passes
from ddp_ft.data.sampler import GlobalOrderSampler, smallest_share
from ddp_ft.errors import UserError
from ddp_ft.models.batch_norm import is_synchronised

_NEEDS_TWO = "A norm of this model has a single value of each image for a channel, so it needs two images at a time"
_OTHERWISE = "--set model.batch_norm=frozen for batch norm with pretrained weights, or another norm in the model"


def check_shares(config: RunConfig, built: BuiltModel, samples: int, processes: int) -> None:
    """Raise UserError if a sample would be alone in a forward pass of training that needs two, or if a process would
    wait in a forward pass for one that has fewer."""
    _check_passes(config, built, samples, processes)
    if built.least > 1 and not config.freeze.cache_features:
        if config.train.micro_batch == 1:
            raise UserError(f"--micro-batch 1 is too small. {_NEEDS_TWO}.", f"Use --micro-batch 2; or {_OTHERWISE}.")
        _check_share("--batch-size", config.train.batch_size, samples, processes, built.processor.pairs(config))
    for option, batch_size in _on_features(config).items():
        head = built.module.get_submodule(built.head_path or "")
        if any(isinstance(each, _BatchNorm) for each in head.modules()):
            _check_share(option, batch_size, samples, 1)


def _check_passes(config: RunConfig, built: BuiltModel, samples: int, processes: int) -> None:
    batch_size, most, pairs = config.train.batch_size, config.train.micro_batch, built.processor.pairs(config)
    if most is None or not is_synchronised(built.module):
        return
    first, last = (
        GlobalOrderSampler(samples, batch_size, processes, rank, 0, pairs=pairs) for rank in (0, processes - 1)
    )
    if uneven := uneven_passes(first, last, most, built.least):
        raise UserError(
            f"model.batch_norm = sync: in micro-batches of {most}, a step has {uneven[0]} forward passes on one"
            f" process and {uneven[1]} on another, and each waits for all processes.",
            "Leave --micro-batch out (compute.recompute saves memory too), or use model.batch_norm = train or frozen.",
        )


def _on_features(config: RunConfig) -> dict[str, int]:
    """The batch sizes with which the head alone is trained on features, by their options."""
    probe = {"--set probe.batch_size": config.probe.batch_size} if config.probe.epochs else {}
    return probe | ({"--batch-size": config.train.batch_size} if config.freeze.cache_features else {})


def _check_share(option: str, batch_size: int, samples: int, processes: int, pairs: bool = False) -> None:
    if smallest_share(samples, batch_size, processes, pairs) >= 2:
        return
    fits = fitting_batch(batch_size, samples, processes, 2, pairs)
    remedy = f"Use {option} {fits}" if fits else "Use fewer processes, or more data"
    where = f" in one of {processes} processes" if processes > 1 else ""
    raise UserError(
        f"{option} {batch_size}: of {samples} samples, some step has fewer than two{where}. {_NEEDS_TWO}.",
        f"{remedy}; or {_OTHERWISE}.",
    )


def fitting_batch(wanted: int, samples: int, processes: int, least: int, pairs: bool = False) -> int | None:
    """The smallest global batch of at least `wanted` that the processes can share, and with which each has `least`
    samples in each step (1: or none at all in some); None if there is none."""
    sizes = range(max(processes, wanted), samples + 1)
    return next(
        (size for size in sizes if smallest_share(samples, size, processes, pairs) >= least or least == 1), None
    )
