"""A learning curve in words, from learning_curve.json of a run."""

from typing import Any

from ddp_ft.files import read_sound_json
from ddp_ft.reporting.facts import RunFacts
from ddp_ft.run_folder.folder import LEARNING_CURVE
from ddp_ft.texts import count, metric_figure


def describe(content: dict[str, Any]) -> str:
    """The curve as a table, and what follows from it."""
    rows = [f"  {point['images']:>8,}  {_figure(point)}" for point in content["points"]]
    title = f"  {'images':>8}  {content['metric']} on the validation set, of a head on frozen features"
    table = "\n".join([title, *rows])
    return f"{table}\n{verdict(content)}"


def _figure(point: dict[str, Any]) -> str:
    spread = f" ± {metric_figure(point['deviation'])}" if point["deviation"] is not None else ""
    return f"{metric_figure(point['mean'])}{spread}"


def verdict(content: dict[str, Any]) -> str:
    """What the curve says of more images, and what training all layers adds."""
    if len(content["points"]) == 1:  # of a few images the least part is the whole
        return "There are too few images to draw smaller parts from them, so it shows nothing of more."
    sign = 1 if content["higher_is_better"] else -1
    half, whole = (content["points"][number]["mean"] for number in (-2, -1))
    gain, error = sign * (whole - half), content["error"]
    measured = f" (the error of measuring it: {metric_figure(error)})" if error else ""
    answer = "More images would help" if gain > error else "Whether more images would help cannot be told from these"
    more = f"{answer}: twice as many have just added {metric_figure(gain)}{measured}."
    if content["trained"] is None:
        return more
    more_layers = metric_figure(sign * (content["trained"] - whole))
    return f"{more} Training as this run did adds {more_layers} to the head alone."


def describe_curve(facts: RunFacts) -> str:
    """The curve that was measured for a run, in one line; empty if none was."""
    content = read_sound_json(facts.path / LEARNING_CURVE, dict)
    try:
        points = ", ".join(f"{count(each['images'])} images {_figure(each)}" for each in content["points"])
        return f"{content['metric']} of a head on frozen features: {points}. {verdict(content)}"
    except (KeyError, TypeError, ValueError, IndexError):  # none, or one that somebody has edited
        return ""
