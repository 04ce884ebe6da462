"""The course of a run where nobody says: how long it is, how often it is evaluated, and which model is kept."""

import math
from dataclasses import dataclass

from ddp_ft.config.schema import RunConfig
from ddp_ft.texts import plural, sample_noun

# BiT's rule gives all sets of fewer than 20,000 images 500 steps (arXiv 1912.11370, section 3.3), of 512 images each.
# These are of 32: they are enough for 1,000 images (docs/accuracy.md), and from there on grow with the root of their
# number, so that epochs get fewer as it grows.
STEPS, OF_IMAGES = 500, 1000
# What begins at random has more to learn.
FROM_SCRATCH = 4.0
# A set of many classes has few images of each: so often each class is to be seen.
SHOWN_PER_CLASS = 100
FEWEST_EPOCHS, MOST_EPOCHS = 3, 150
# Evaluations, with a checkpoint each, of a run whose length nobody gives: in short epochs they would take longer than
# the steps.
EVALUATIONS = 20
# The average is of the last tenth of all steps so far: its decay rises with them (`ema.decay_at`), up to this one.
HIGHEST_DECAY = 0.9999
# How the best model is chosen.
BEST, LATEST = "best", "latest"


@dataclass(frozen=True)
class Course:
    """Epochs of a run, and of them those from one evaluation to the next; the highest decay of the moving average (0:
    there is none); and how the best model is chosen. `why` there are so many epochs; empty if somebody asked for them.
    """

    epochs: int
    evaluation_epochs: int
    ema_decay: float
    choice: str
    why: str = ""


def choose_course(config: RunConfig, images: int, outputs: int, names: str = "classes", kind: str = "image") -> Course:
    """Return the course of a run on so many training images, of a model of so many outputs, which are called `names`;
    they are of that kind of input.

    It depends on recipe and data alone, so it is the same on every machine. An asked-for number of epochs means these,
    each evaluated, without an average, and the best of all.
    """
    given, every, decay = config.train.epochs, config.eval.every_epochs, config.ema.decay
    choice = config.eval.choose if config.eval.choose != "auto" else BEST if given else LATEST
    if given is not None:
        return Course(given, every or 1, decay or 0.0, choice)
    epochs = _usual_epochs(config, images, outputs)
    of = f" of {outputs} {names}" if outputs > 1 else ""
    new = ", nothing pretrained" if config.model.weights == "none" else ""
    cap = "the most" if epochs == _most_epochs(config) else ""
    why = f"{cap} for {plural(images, sample_noun(kind))}{of}{new}".strip()
    # The steps of a head alone take less time than an average of the whole model.
    usual_decay = 0.0 if config.freeze.cache_features else HIGHEST_DECAY
    return Course(
        epochs, every or math.ceil(epochs / EVALUATIONS), usual_decay if decay is None else decay, choice, why
    )


def _most_epochs(config: RunConfig) -> int:
    return round(MOST_EPOCHS * _factor(config))


def _factor(config: RunConfig) -> float:
    return FROM_SCRATCH if config.model.weights == "none" else 1.0


def _usual_epochs(config: RunConfig, images: int, outputs: int) -> int:
    batch_size, factor = config.train.batch_size, _factor(config)
    steps = max(STEPS * math.sqrt(max(1.0, images / OF_IMAGES)) * factor, SHOWN_PER_CLASS * outputs / batch_size)
    least = max([FEWEST_EPOCHS, *(1 + int(epoch) for epoch in config.freeze.schedule or ())])
    most = max(least, _most_epochs(config))
    return min(max(round(steps / math.ceil(images / batch_size)), least), most)
