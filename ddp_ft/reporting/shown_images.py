"""Images in a report, as the model sees them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddp_ft.contracts import LabelledSource, Processor
from ddp_ft.data.image.pillow import Pixels
from ddp_ft.data.open_sample import open_sample
from ddp_ft.errors import printable
from ddp_ft.reporting.facts import RunFacts
from ddp_ft.reporting.svg_charts import data_uri
from ddp_ft.tasks.scored.base import ScoredSet

# Images with fewer pixels a side are enlarged by whole pixels.
SMALL = 100


def shown_images(
    facts: RunFacts, scored_set: ScoredSet, indices: Sequence[int], source: LabelledSource, explains: bool
) -> list[dict[str, Any]]:
    """The template's values for these samples; nothing in an image is explained."""
    shown, processor = [], facts.processor
    assert processor is not None, "a set was evaluated, so there is a model"
    for index in indices:
        image = image_of(source, index, processor)
        if image is not None:
            path = printable(source.name(index))
            about = {"caption": scored_set.caption(index), "path": path, "file": Path(path).name}
            shown.append({"uri": data_uri(image), "is_small": max(image.shape) < SMALL, **about})
    return shown


def image_of(source: LabelledSource, index: int, processor: Processor) -> Pixels | None:
    """A sample's image as the model sees it in evaluation; None if it has none. Raises BadSample."""
    transform, to_device = processor.eval_transform(), processor.on_device(torch.device("cpu"), channels_last=False)
    batch = to_device(transform.collate([transform(open_sample(source, index))]))
    return next(iter(processor.pixels(batch)), None)
