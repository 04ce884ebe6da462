"""What is wrong with the images: findings of a survey of all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ddp_ft.data.survey import ALPHA, ANIMATED, CMYK, DEEP, PALETTE, SUFFIX, TURNED, Survey
from ddp_ft.diagnostics.finding import NOTE, OK, PROBLEM, WARNING, Finding
from ddp_ft.errors import printable

# Longer sides than this cost more time to read than to learn from; a photo of 12 megapixels has 4000 x 3000.
HUGE_PIXELS = 12_000_000
_KEPT = 100_000  # paths of one finding: of a million the rest says nothing new

# What becomes of odd images, for those who wonder.
_BECOME = {
    CMYK: "are converted to RGB without a colour profile",
    DEEP: "are scaled to 8 bits by their format's range",
    PALETTE: "are converted to RGB",
    ALPHA: "lose their alpha",
    ANIMATED: "are represented by their first frame",
    TURNED: "are brought upright, here and by predict; other software that uses the model must do so too",
}


def about_survey(found: Survey, tolerates: bool, input_size: tuple[int, ...] | None) -> Iterator[Finding]:
    """All findings. `tolerates`: damaged images do not end the run (data.on_error = skip). `input_size` is the
    model's, (height, width); None: it is not known."""
    yield readable(found, tolerates)
    yield from doubled(found)
    yield from odd(found)
    yield from sized(found, input_size)


def readable(found: Survey, tolerates: bool) -> Finding:
    """Images that cannot be read to their end."""
    if not found.damaged:
        return Finding("readable", OK, f"all {len(found)} images", value=0.0, unit="images")
    text = f"{len(found.damaged)} of {len(found)} images cannot be read"
    remedy = "Mend or remove them." if tolerates else "Mend or remove them, or go on without: --set data.on_error=skip."
    paths = [f"{_path(found, number)}: {printable(reason)}" for number, reason in found.damaged.items()]
    verdict = WARNING if tolerates else PROBLEM
    return Finding("readable", verdict, text, remedy, float(len(found.damaged)), "images", tuple(paths[:_KEPT]))


def doubled(found: Survey) -> Iterator[Finding]:
    """The same bytes in two splits, with two targets, or merely twice."""
    leaks: list[list[int]] = []
    contradictions: list[list[int]] = []
    repeats: list[list[int]] = []
    for twins in found.twins():
        roles, targets = found.roles[twins], found.targets[twins]
        is_leak, is_contradiction = bool((roles != roles[0]).any()), bool((targets != targets[0]).any())
        leaks += [twins] * is_leak
        contradictions += [twins] * is_contradiction
        repeats += [twins] * (not is_leak and not is_contradiction)
    splits = " and ".join(found.splits)
    remedy = "Remove them from one: a model that has seen what it is judged by looks better than it is."
    yield _twins(found, leaks, Finding("leakage", PROBLEM, f"the same images in {splits}", remedy))
    remedy = "Decide which label is right: the model cannot learn both."
    yield _twins(found, contradictions, Finding("label noise", WARNING, "the same image with different labels", remedy))
    remedy = "Harmless, unless there are many: they count several times."
    yield _twins(found, repeats, Finding("duplicates", NOTE, "the same image several times in a class", remedy))


def _twins(found: Survey, groups: list[list[int]], what: Finding) -> Finding:
    """`what` with these groups; its text says what they are of."""
    if not groups:
        return Finding(what.name, OK, "none", value=0.0, unit="groups")
    paths = tuple(" = ".join(_path(found, number) for number in group) for group in groups[:_KEPT])
    text = f"{_counted(len(groups), 'group')} of {what.text}"
    return replace(what, text=text, value=float(len(groups)), unit="groups", paths=paths)


def odd(found: Survey) -> Iterator[Finding]:
    """Unusual modes, and names that say another format."""
    wrong = found.having(SUFFIX)
    if wrong:
        text = f"{_counted(len(wrong), 'file')} of another format than the name says"
        remedy = "They are read all the same; other software may refuse them."
        yield Finding("formats", NOTE, text, remedy, float(len(wrong)), "images", _paths(found, wrong))
    else:
        yield Finding("formats", OK, "as the names say", value=0.0, unit="images")
    for oddity, fate in _BECOME.items():
        if those := found.having(oddity):
            share = len(those) / len(found)
            text = f"{_counted(len(those), 'image')} ({share:.1%}): {oddity}"
            yield Finding("modes", NOTE, text, f"These {fate}.", float(len(those)), "images", _paths(found, those))


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
    huge = sound[areas > HUGE_PIXELS]
    if len(huge):
        text = f"{_counted(len(huge), 'image')} of more than {HUGE_PIXELS / 1e6:.0f} megapixels"
        remedy = "Reading them takes most of the time. Shrink them once, to twice the model's size."
        those = [int(number) for number in huge]
        yield Finding("huge images", NOTE, text, remedy, float(len(huge)), "images", _paths(found, those))


def _small(found: Survey, sound: "np.ndarray[tuple[int], np.dtype[np.int64]]", sides: object, wanted: int) -> Finding:
    small = [int(number) for number in sound[np.asarray(sides) < wanted]]
    share = len(small) / len(sound)
    text = f"{share:.1%} of the images are smaller than the {wanted} px that the model sees"
    if not small:
        return Finding("small images", OK, text, value=0.0, unit="share")
    remedy = "They are enlarged. A smaller --image-size is faster and may be as good."
    return Finding("small images", WARNING if share > 0.5 else NOTE, text, remedy, share, "share", _paths(found, small))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _path(found: Survey, number: int) -> str:
    return printable(found.name(number))


def _paths(found: Survey, numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(_path(found, number) for number in numbers[:_KEPT])
