"""What an expert would remark on a run before its first step. Checks that do not apply return None."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import LABELS
from ddp_ft.data.class_counts import ClassCounts, count_classes
from ddp_ft.data.image.headers import glance
from ddp_ft.data.splits.record import Splits
from ddp_ft.diagnostics.finding import OK, WARNING, Finding
from ddp_ft.errors import printable, shortened
from ddp_ft.texts import plural, sample_noun
from ddp_ft.training.run import Run
from ddp_ft.training.shares import fitting_batch

FEWEST_IMAGES, RARE_SHARE = 10, 0.01
MOST_IMBALANCE = 20.0
WIDEST_INTERVAL = 5.0  # points of accuracy, to each side
# Down to some 10,000 images random weights can do as well as pretrained ones, if trained long (arXiv 1811.08883).
ENOUGH_FROM_SCRATCH = 10_000
FEWEST_STEPS = 100
SMALL_BATCH = 8  # batch norm's estimates get clearly worse below (arXiv 1803.08494, figure 1)
# Images a second that no usual training reaches: of one CPU thread, 25 times what EfficientNet-Lite0 does at 128 px
# (docs/performance.md); of one GPU, a generous guess that was not measured.
UNREACHABLE = {"cpu": 500.0, "cuda": 10_000.0}
# Usual peak rates of fine-tuning: the lowest and the highest. Adam's kin: 2e-5 to 5e-5 for transformers as a whole
# (arXiv 1810.04805, A.3) up to some 1e-3 with layer decay (arXiv 2111.06377, table 9) or batch norm
# (docs/accuracy.md). SGD: 3e-3 (BiT, arXiv 1912.11370) to 0.1 for a batch of 256 (arXiv 1706.02677). Lion: a third to
# a tenth of AdamW's (arXiv 2302.06675). LAMB: arXiv 1904.00962, and 5e-3 in arXiv 2110.00476. A factor of
# two to five is left at either end.
_ADAM, _SGD, _LION, _LAMB = (1e-5, 5e-3), (1e-3, 1.0), (1e-6, 1e-3), (1e-4, 2e-2)
USUAL_RATES = {
    **dict.fromkeys(("adam", "adamw", "nadam", "nadamw", "radam", "adamp", "adabelief"), _ADAM),
    **dict.fromkeys(("sgd", "momentum", "nesterov", "sgdp", "sgdw", "nesterovw"), _SGD),
    "lion": _LION,
    "lamb": _LAMB,
}


@dataclass(frozen=True)
class Situation:
    """What is known at the start.

    `sizes` are (height, width) of some of the images, `input_size` that of the model's input. `lr` is the peak rate,
    `steps` their number in the whole run, `computers` the number of GPUs or CPU threads. `seconds_left` is the time
    until the batch job ends; None: it is not known. Each of the `processes` needs `least` images in a step.
    `has_labels`: an image has any number of them; `has_frozen`: a part of the model never learns; `val_is_given`: the
    data itself names what validates. `noun`: what a sample is.
    """

    config: RunConfig
    train: int
    val: int
    counts: ClassCounts | None
    val_counts: ClassCounts | None
    sizes: Sequence[tuple[int, int]]
    input_size: tuple[int, ...]
    lr: float
    steps: int
    computers: int = 1
    device: str = "cpu"
    seconds_left: float | None = None
    processes: int = 1
    least: int = 1
    has_frozen: bool = False
    has_labels: bool = False
    val_is_given: bool = False
    noun: str = "image"


def advise(known: Situation) -> list[Finding]:
    """All findings, good ones too: of the data, then of the recipe."""
    return [finding for finding in (*_about_data(known), *_about_recipe(known)) if finding is not None]


def _about_data(known: Situation) -> Iterator[Finding | None]:
    """Findings about the images."""
    config = known.config
    if known.counts is not None:
        evens_out = config.data.sampling != "natural" or bool(config.loss.class_weights or config.loss.positive_weights)
        yield rare_classes(known.counts, known.noun)
        yield imbalance(known.counts, evens_out, known.noun)
        yield corrected_twice(config)
        if known.val_counts is not None:
            yield missing_classes(known.val_counts, known.noun)
        yield small_val(known.val, known.has_labels, known.val_is_given, bool(config.data.fold), known.noun)
    yield small_images(known.sizes, known.input_size)


def _about_recipe(known: Situation) -> Iterator[Finding | None]:
    config = known.config
    yield from_scratch(config.model.weights, known.train, known.has_frozen, known.noun)
    yield unusual_rate(config.optim.name, known.lr)
    yield large_batch(config.train.batch_size, known.train, known.processes, known.least, known.noun)
    yield few_steps(known.steps)
    if known.seconds_left is not None:
        yield rushed(known, known.seconds_left)


def rare_classes(counts: ClassCounts, noun: str = "image") -> Finding:
    """Warn of classes with fewer than FEWEST_IMAGES, or than RARE_SHARE of all (fewer if there are many classes)."""
    share = min(RARE_SHARE, 0.2 / len(counts.names))
    least = max(FEWEST_IMAGES, share * sum(counts.counts))
    rare = [f"{printable(name)} ({n})" for name, n in zip(counts.names, counts.counts, strict=True) if n < least]
    smallest, fewest = counts.smallest
    if not rare:
        text = f"{len(counts.names)}, the smallest is {printable(smallest)} with {plural(fewest, noun)}"
        return Finding("classes", OK, text, value=float(fewest), unit=f"{noun}s")
    few = "1 class has" if len(rare) == 1 else f"{len(rare)} of {len(counts.names)} classes have"
    text = f"{few} hardly any {noun}s to learn from: {shortened(rare, 5)}"
    return Finding("classes", WARNING, text, f"Add {noun}s of them, or leave them out.", float(len(rare)), "classes")


def imbalance(counts: ClassCounts, evens_out: bool, noun: str = "image") -> Finding | None:
    """Warn of a class far larger than another, unless the recipe evens it out; None if a class has no image at all."""
    ratio, (small, fewest), (large, _) = counts.imbalance, counts.smallest, counts.largest
    if not fewest:
        return None
    text = f"{printable(large)} has {ratio:.3g} times as many {noun}s as {printable(small)}"
    if ratio == 1:
        text = "none: all classes are of the same size"
    # One remedy: both at once correct twice (`corrected_twice`).
    remedy = "Add --class-weights balanced, and judge by --metric macro_f1."
    return Finding("imbalance", WARNING, text, remedy, ratio, "times").unless(ratio <= MOST_IMBALANCE or evens_out)


def corrected_twice(config: RunConfig) -> Finding | None:
    """Warn of rare classes that are drawn more often and weigh more too; None if they are not drawn more often."""
    if config.data.sampling != "balanced":
        return None
    weights = {"--class-weights": config.loss.class_weights, "loss.positive_weights": config.loss.positive_weights}
    given = [f"{name} {value}" for name, value in weights.items() if value is not None and not _are_equal(value)]
    text = "classes are drawn equally often (--sampling balanced)"
    if given:
        text += f", and weigh more where they are rare ({', '.join(given)}): that corrects twice"
    remedy = "Leave one of them out, unless this is meant."
    return Finding("class balance", WARNING, text, remedy, float(len(given)), "settings").unless(not given)


def _are_equal(weights: str) -> bool:
    """Whether it is a list of the same number for each class."""
    return "," in weights and len({part.strip(" []") for part in weights.split(",")}) == 1


def missing_classes(val_counts: ClassCounts, noun: str = "image") -> Finding:
    """Warn of classes without an image in the validation set."""
    gone = [printable(name) for name, count in zip(val_counts.names, val_counts.counts, strict=True) if not count]
    text = f"no {noun} to validate on: {shortened(gone, 5)}" if gone else f"each has {noun}s to validate on"
    remedy = f"Put some of their {noun}s into val/, or leave the split to --val-split or --set data.fold=1/5."
    return Finding("classes in val", WARNING, text, remedy, float(len(gone)), "classes").unless(not gone)


_LARGER_VAL = "Hold back more (--val-split), or average over folds (ddp-ft kfold)."


def small_val(
    samples: int, has_labels: bool = False, is_given: bool = False, is_fold: bool = False, noun: str = "image"
) -> Finding:
    """Warn of a validation set too small to measure an accuracy; with several labels each, that of each.

    `is_given`: the data itself names what validates, so no option moves it; `is_fold`: it is one of several parts.
    """
    width = half_width(samples)
    what = "how often a label is right" if has_labels else "an accuracy"
    text = f"{samples} {noun}s measure {what} to ±{width:.1f} points (95 %, at worst)"
    options = "ddp-ft kfold averages over all folds." if is_fold else _LARGER_VAL
    remedy = f"Smaller differences mean nothing. {f'Put more {noun}s into val.' if is_given else options}"
    return Finding("validation set", WARNING, text, remedy, width, "points").unless(width <= WIDEST_INTERVAL)


def small_images(sizes: Sequence[tuple[int, int]], input_size: tuple[int, ...]) -> Finding | None:
    """Warn if more than half of these images are smaller than the model's input; None if there are no sizes."""
    if not sizes:
        return None
    wanted = min(input_size)
    sides = sorted(min(size) for size in sizes)
    middle, share = sides[len(sides) // 2], sum(side < wanted for side in sides) / len(sides)
    few = f"{share:.0%} of {len(sides)} sampled images"
    text = f"{few} have a short side below the model's {wanted} px; the median is {middle} px"
    side = middle // 32 * 32  # what most models can take
    remedy = "Enlarging them takes time and adds no detail."
    if 32 <= side < wanted:
        remedy += f" Try --image-size {side}."
    found = Finding("image sizes", WARNING, text, remedy, share, "share smaller than the input")
    return found.unless(share <= 0.5)


def from_scratch(weights: str, train: int, has_frozen: bool = False, noun: str = "image") -> Finding | None:
    """Warn of random weights and too few images for them, or that stay random; None with pretrained ones."""
    if weights != "none":
        return None
    if has_frozen:
        text = "what is frozen keeps its random initial values (--weights none)"
        return Finding("weights", WARNING, text, "Give pretrained weights, or train all parts: --freeze none.")
    text, remedy = f"all is learned from {train} {noun}s (--weights none)", "Pretrained weights are far better here."
    return Finding("weights", WARNING, text, remedy, float(train), f"{noun}s").unless(train >= ENOUGH_FROM_SCRATCH)


def unusual_rate(optimizer: str, lr: float) -> Finding | None:
    """Warn of a peak rate out of its optimizer's usual range; None for an optimizer that is not in the table."""
    usual = USUAL_RATES.get(optimizer.lower().removeprefix("lookahead_"))
    if usual is None:
        return None
    low, high = usual
    text = f"{lr:g} with {optimizer}; usual for fine-tuning are {low:g} to {high:g}"
    remedy = "See --lr; --optimizer sgd and adamw need other rates."
    return Finding("learning rate", WARNING, text, remedy, lr).unless(low <= lr <= high)


def large_batch(batch_size: int, train: int, processes: int = 1, least: int = 1, noun: str = "image") -> Finding:
    """Warn of a batch that is larger than the training set; each of the processes needs `least` images in a step."""
    text = f"{batch_size} of {train} {noun}s in a step"
    wanted = max(train // 10, min(SMALL_BATCH, train // 2))
    smaller = fitting_batch(wanted, train, processes, least)
    remedy = f"Each step sees every {noun}. {f'Try --batch-size {smaller}.' if smaller else 'Use fewer processes.'}"
    return Finding("batch size", WARNING, text, remedy, float(batch_size), f"{noun}s").unless(batch_size <= train)


def few_steps(steps: int) -> Finding:
    """Warn of a run too short for a schedule to do anything."""
    text = f"{steps}" if steps >= FEWEST_STEPS else f"only {steps} in the whole run"
    remedy = "Weights move little in so few. Leave --epochs out, or give more, or a smaller --batch-size."
    return Finding("steps", WARNING, text, remedy, float(steps), "steps").unless(steps >= FEWEST_STEPS)


def rushed(known: Situation, seconds_left: float) -> Finding:
    """Warn if the batch job ends too early for all steps, at any plausible speed."""
    images = known.steps * min(known.config.train.batch_size, known.train)
    needed = images / max(seconds_left, 1.0) / known.computers
    each = "GPU" if known.device == "cuda" else "thread"
    text = f"{seconds_left / 60:.0f} minutes are left for {images} {known.noun}s: {needed:.3g} a second and {each}"
    # The job saves and resumes after a requeue, so it is not lost.
    remedy = "The run will need several jobs (docs/slurm.md). Ask for more time or processes, or fewer --epochs."
    found = Finding("job time", WARNING, text, remedy, needed, f"{known.noun}s/s")
    return found.unless(needed <= UNREACHABLE[known.device])


def situation_of(run: Run, end: float | None) -> Situation:
    """What is known of a run before its first step; reads headers of up to 64 images, for half a second at most.

    `end` is when the batch job ends, in seconds since 1970; None: it is not known.
    """
    plan, splits, is_cuda = run.plan, run.splits, run.world.device.type == "cuda"
    return Situation(
        config=run.config,
        train=plan.train_samples,
        val=plan.val_samples,
        counts=count_classes(splits.train, splits.schema),
        val_counts=count_classes(splits.val, splits.schema),
        sizes=glance(splits.train),
        input_size=run.model.processor.shape(),
        lr=plan.lr,
        steps=plan.total_steps,
        computers=plan.world_size * (1 if is_cuda else plan.threads),
        device=plan.device,
        seconds_left=None if end is None else end - time.time(),
        processes=plan.world_size,
        least=run.model.least,
        has_frozen=bool(frozenset.intersection(*(stage.frozen for stage in run.stages))),
        has_labels=splits.schema.kind == LABELS,
        val_is_given=bool(splits.record.get("given")),
        noun=sample_noun(splits.train.kind),
    )


def advise_on_data(config: RunConfig, splits: Splits) -> list[Finding]:
    """The findings about data for which no model is given."""
    counts, val_counts = (count_classes(source, splits.schema) for source in (splits.train, splits.val))
    known = Situation(
        config,
        len(splits.train),
        len(splits.val),
        counts,
        val_counts,
        (),
        (0, 0),
        0.0,
        0,
        has_labels=splits.schema.kind == LABELS,
        val_is_given=bool(splits.record.get("given")),
        noun=sample_noun(splits.train.kind),
    )
    return [finding for finding in _about_data(known) if finding is not None]


def half_width(images: int) -> float:
    """Half of the 95 % interval of an accuracy of 50 % (the widest) on that many images, in points (0..100)."""
    return 100 * 1.96 * math.sqrt(0.25 / images) if images else 100.0  # normal approximation
