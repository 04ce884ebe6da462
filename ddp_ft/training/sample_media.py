"""Samples that TensorBoard shows, as images or as texts: the first batch, and what the best model gets wrong."""

from collections.abc import Sequence
from pathlib import Path

from ddp_ft.contracts import Batch, LabelledSource, Task
from ddp_ft.data.batch import first_samples
from ddp_ft.data.open_sample import open_sample
from ddp_ft.tasks.scored.base import ScoredSet
from ddp_ft.texts import percent
from ddp_ft.trackers import charts
from ddp_ft.trackers.charts import short
from ddp_ft.trackers.fan_out import FanOut, harmless
from ddp_ft.trackers.markdown import quoted
from ddp_ft.training.run import Run

# TensorBoard sorts groups by their names: images come after the curves.
IMAGES, TEXTS = "8_images", "8_texts"
GRID_IMAGES = 16
# Worst mistakes, least certain and most certain correct answers, so many of each.
SHOWN_SAMPLES = 8


@harmless("the first batch is not shown")
def log_first_samples(run: Run, micro_batch: Batch, trackers: FanOut) -> None:
    """Log the first samples of a run as the model sees them, with their targets."""
    batch = first_samples(micro_batch, GRID_IMAGES)
    prepared, processor = run.prepare(batch), run.model.processor
    seen, texts = processor.pixels(prepared), processor.texts(prepared)
    captions = [_targets(batch, place, run.task) for place in range(len(seen or texts))]
    if seen:
        trackers.draw(f"{IMAGES}/1_first_batch", 0, charts.pixels_png, seen, captions)
    elif texts:
        trackers.text(f"{TEXTS}/1_first_batch", 0, quoted(texts, captions))


def log_samples(
    run: Run, scored_set: ScoredSet, source: LabelledSource, place: tuple[str, int], trackers: FanOut
) -> None:
    """Log the samples of a set on which the model is worst, and some on which it is right. `place`: what the tags begin
    with, and the step."""
    prefix, step = place
    for tag, indices in (
        ("5_worst_mistakes", scored_set.worst(SHOWN_SAMPLES)),
        ("6_least_certain_correct", scored_set.least_certain(SHOWN_SAMPLES)),
        ("7_correct_examples", scored_set.correct_examples(SHOWN_SAMPLES)),
    ):
        if not indices:
            continue
        names, captions = _samples(scored_set, source, indices)
        if texts := _texts(run, source, indices):
            trackers.text(f"{prefix}{TEXTS}/{tag}", step, quoted(texts, captions))
        elif source.kind in charts.DRAWN and any(Path(name).is_file() for name in names):
            trackers.draw(f"{prefix}{IMAGES}/{tag}", step, charts.files_png, names, captions)


def _texts(run: Run, source: LabelledSource, indices: Sequence[int]) -> list[str]:
    """The samples as texts that the model sees; none if they are no texts."""
    processor = run.model.processor
    if not processor.texts(run.prepare(processor.example(1))):
        return []
    transform = processor.eval_transform()
    return processor.texts(run.prepare(transform.collate([transform(open_sample(source, index)) for index in indices])))


def _samples(
    scored_set: ScoredSet, source: LabelledSource, indices: Sequence[int]
) -> tuple[list[str], list[list[str]]]:
    """Return names, of files or texts, and the caption of each: what the model predicts, what is true, and the name."""
    files = [source.name(index) for index in indices]
    captions = [[f"{what}: {text}" for what, text in scored_set.caption(index)] for index in indices]
    return files, [[*lines, file] for lines, file in zip(captions, files, strict=True)]


def _targets(batch: Batch, place: int, task: Task) -> list[str]:
    """Lines of a sample's target; of a mixed one its own and its partner's, with their shares."""

    def text(place: int) -> str:
        return ", ".join(short(word) for word in task.target_words(batch, place))

    own = text(place)
    share = float(batch["mix_share"][place]) if "mix_share" in batch else 1.0
    if share == 1 or not own:
        return [own] if own else []
    return [f"{percent(share)} {own}", f"{percent(1 - share)} {text(int(batch['mix_partner'][place]))}"]
