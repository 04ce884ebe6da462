"""Findings about the images, from a survey of all of them."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ddp_ft.config.data import DataConfig
from ddp_ft.config.paths import code_file
from ddp_ft.contracts import LabelledSource, Processor, Source
from ddp_ft.data.image.value_range import LEAST_USE, levels_used, parse_range, range_of, sample_values
from ddp_ft.data.survey import ALPHA, ANIMATED, CMYK, DEEP, PALETTE, SUFFIX, TURNED, Survey, survey
from ddp_ft.diagnostics.examination import Progress
from ddp_ft.diagnostics.finding import NOTE, OK, WARNING, Finding
from ddp_ft.diagnostics.samples import doubled, paths_of, readable, readable_by_code
from ddp_ft.texts import plural

# Longer sides than this cost more time to read than to learn from; a photo of 12 megapixels has 4000 x 3000.
HUGE_PIXELS = 12_000_000

# What is done with unusual images.
_BECOME = {
    CMYK: "are converted to RGB without a colour profile",
    DEEP: "are scaled to 8 bits, from data.range",
    PALETTE: "are converted to RGB",
    ALPHA: "lose their alpha",
    ANIMATED: "are represented by their first frame",
    TURNED: "are brought upright, here and by predict; other software that uses the model must do so too",
}


def examine_images(
    sources: Mapping[str, LabelledSource], data: DataConfig, processor: Processor | None, report: Progress
) -> Iterator[Finding]:
    """All findings of these sets, which are read for it; of a data set of the user's own whether it can be read, since
    its code alone knows what its images are. `processor`: the model's, if there is one."""
    tolerates = data.on_error == "skip"
    if data.path is not None and code_file(data.path):
        yield readable_by_code(sources, tolerates)
        return
    channels = data.channels or 3
    found = survey(sources, report or (lambda done, total: None), channels=channels)
    yield from about_survey(found, tolerates, None if processor is None else processor.shape())
    yield from grey_levels(sources["train"], data.range, channels)


def about_survey(found: Survey, tolerates: bool, input_size: tuple[int, ...] | None) -> Iterator[Finding]:
    """All findings. `tolerates`: damaged images do not end the run (data.on_error = skip). `input_size`: the model's
    (height, width); None: it is not known."""
    yield readable(found, tolerates)
    yield from doubled(found)
    yield from odd(found)
    yield from sized(found, input_size)


def odd(found: Survey) -> Iterator[Finding]:
    """Unusual modes, and formats that differ from the file's name."""
    wrong = found.having(SUFFIX)
    text = f"{plural(len(wrong), 'file')} of another format than the name says" if wrong else "as the names say"
    remedy = "They are read all the same; other software may refuse them."
    yield _note(found, "formats", text, remedy, wrong).unless(not wrong)
    for oddity, fate in _BECOME.items():
        if those := found.having(oddity):
            text = f"{plural(len(those), 'image')} ({len(those) / len(found):.1%}): {oddity}"
            yield _note(found, "modes", text, f"These {fate}.", those)


def grey_levels(source: Source, given: Sequence[float] | None, channels: int = 3) -> Iterator[Finding]:
    """How many grey levels remain of images of more than 8 bits; `given`: data.range."""
    values, known = sample_values(source, channels), parse_range(given)
    if values is None or (ends := known or range_of(values)) is None:
        return
    levels, (low, high) = levels_used(values, ends), values.middle
    text = f"black is {ends[0]:g} and white {ends[1]:g}; the middle 98 % of the values ({low:g} to {high:g}) become"
    text += f" {levels:.0f} of 256 grey levels"
    remedy = f"Fine differences are lost. If these values are what matters: --set data.range={low:g},{high:g}"
    found = Finding("grey levels", WARNING, text, remedy, round(levels, 1), "levels")
    yield found.unless(levels >= 256 * LEAST_USE)


def _note(found: Survey, name: str, text: str, remedy: str, those: Sequence[int]) -> Finding:
    return Finding(name, NOTE, text, remedy, float(len(those)), "images", paths_of(found, those))


def sized(found: Survey, input_size: tuple[int, ...] | None) -> Iterator[Finding]:
    """Images that are smaller than the model's input, and huge ones."""
    sound = np.setdiff1d(np.arange(len(found)), list(found.damaged))
    if not len(sound):
        return
    sizes = found.sizes[sound].astype(np.int64)
    sides, areas = sizes.min(1), sizes.prod(1)
    low, middle, high = (int(side) for side in (sides.min(), np.median(sides), sides.max()))
    text = f"short sides of {low} to {high} px, the median is {middle} px"
    yield Finding("sizes", OK, text, value=float(middle), unit="px")
    if input_size:
        yield _small(found, sound, sides, min(input_size))
    if huge := sound[areas > HUGE_PIXELS].tolist():
        text = f"{plural(len(huge), 'image')} of more than {HUGE_PIXELS / 1e6:.0f} megapixels"
        remedy = "Reading them takes most of the time. Shrink them once, to twice the model's size."
        yield _note(found, "huge images", text, remedy, huge)


def _small(found: Survey, sound: "np.ndarray[tuple[int], np.dtype[np.int64]]", sides: object, wanted: int) -> Finding:
    small = sound[np.asarray(sides) < wanted].tolist()
    share = len(small) / len(sound)
    text = f"{share:.1%} of the images are smaller than the {wanted} px that the model sees"
    remedy, verdict = "They are enlarged. A smaller --image-size is faster and may be as good.", NOTE
    if share > 0.5:
        verdict = WARNING
    return Finding("small images", verdict, text, remedy, share, "share", paths_of(found, small)).unless(not small)
