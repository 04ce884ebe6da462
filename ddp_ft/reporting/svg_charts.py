"""Charts as SVG elements of a page, in the page's colours."""

import base64
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from ddp_ft.contracts import PROBE
from ddp_ft.data.image.pillow import Pixels
from ddp_ft.reporting.facts import Row, RunFacts
from ddp_ft.reporting.formats import is_share, metric_name, noun_of
from ddp_ft.tasks.scored.base import Floats, Reliability, ScoredSet
from ddp_ft.tasks.scored.ranking import Curve, ranking_curves
from ddp_ft.texts import readable
from ddp_ft.trackers.charts import (
    LEGEND_ROW,
    SERIES,
    legend_rows,
    new_figure,
    plain_ticks,
    pr_chart,
    reliability_chart,
    roc_chart,
    scatter_chart,
)  # fmt: skip
from ddp_ft.trackers.services.curves import few_rates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The colours of the drawing, and those of the page that replace them.
_INK, _FAINT = "#010203", "#010204"
_OF_PAGE = {
    _INK: "currentColor",
    _FAINT: "var(--line)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)},
}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
    "svg.hashsalt": "ddp_ft",
    "font.size": 9,
    "axes.titlesize": 9,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), _FAINT),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), _INK),
    **dict.fromkeys(("axes.grid", "axes.axisbelow", "axes.unicode_minus"), True),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "grid.linewidth": 0.5,
    "legend.fontsize": 8,
    "patch.linewidth": 0,
}
WIDTH, HEIGHT = 4.6, 2.6
# The most points of a line, and the most dots that are drawn as dots and not as pixels.
_MOST_POINTS, _MOST_DOTS = 800, 1500
# The probe's width on the axis of epochs, as a share of the training's.
_PROBE_SHARE = 0.25
# Right, bottom and top of the inside of the axes, as shares of a chart; the left depends on the numbers there.
_RIGHT, _BOTTOM, _TOP = 0.97, 0.17, 0.91
# Width of a letter at an axis, and of what is beside the numbers there, as shares of a chart's width.
_LETTER, _BESIDE = 5.2 / 72 / WIDTH, 14 / 72 / WIDTH


def as_svg(draw: Callable[[], "Figure"], label: str) -> Markup:
    """A drawing as an SVG element for a page; `label` is for those who cannot see it."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with rc_context(_STYLE), warnings.catch_warnings():
        # The reader's browser draws letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure, text = draw(), io.StringIO()
        FigureCanvasSVG(figure)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z][\w.]*_\d+"', "", svg)  # ids of parts, the same in every chart
    for colour, of_page in _OF_PAGE.items():
        svg = svg.replace(colour, of_page)
    attributes = Markup('<svg class="chart" role="img" aria-label="{}"').format(label)
    return Markup(str(attributes) + svg.removeprefix("<svg"))  # matplotlib escapes what it writes


def data_uri(image: Pixels) -> str:
    """An image (H x W x 3) as a data URI, for the page itself."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


class _Places:
    """The places of rows on the axis of epochs: the probe's before 0, in a fixed share of the width."""

    def __init__(self, rows: Sequence[Row], starts: Sequence[Mapping[str, Any]]) -> None:
        probe = [row["epoch"] for row in rows if row.get("phase") == PROBE]
        trained = [row["epoch"] for row in rows if row.get("phase") != PROBE]
        self.probe_epochs = max(probe, default=0.0)
        self.only_probe = not trained
        self.width = _PROBE_SHARE * max(trained, default=1.0) if probe and trained else 0.0
        moments = [start["time"] for start in starts[1:] if "time" in start]
        # A restart is at the last row before it.
        self.restarts = [
            max((self.of(row) for row in rows if row["time"] <= moment), default=-self.width) for moment in moments
        ]

    def of(self, row: Row) -> float:
        """The row's place."""
        epoch = float(row["epoch"])
        if row.get("phase") != PROBE or self.only_probe:
            return epoch
        return -self.width * (1 - epoch / self.probe_epochs) if self.probe_epochs else 0.0

    def mark(self, axes: Any) -> None:
        """Shade the probe, and draw a line for each restart."""
        if self.width:
            axes.axvspan(-self.width, 0, color=_FAINT, alpha=0.5, linewidth=0)
            where = axes.get_xaxis_transform()
            axes.text(-self.width / 2, 1.01, "probe", transform=where, ha="center", va="bottom", fontsize=8)
            axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= self.width / _PROBE_SHARE])
        for place in self.restarts:
            axes.axvline(place, color=_INK, linestyle=":", linewidth=0.9)
        axes.set_xlabel("epoch of the probe" if self.only_probe else "epoch")


Lines = dict[str, tuple[list[Row], str, str]]  # label -> rows, the value's name in them, style


def curves(facts: RunFacts) -> list[tuple[str, Markup]]:
    """The curves of a run: title and chart."""
    train = [row for row in facts.rows if row["split"] == "train"]
    timed = [row for row in train if row.get("images_per_second")]  # it is 0 in the first steps of a start
    places = _Places(facts.rows, facts.starts)
    rates, all_rates = _rates(train)
    charts: dict[str, tuple[Lines, str]] = {
        "Loss": ({"training": (train, "loss", "-"), "validation": (facts.evaluations, "loss", "o-")}, ""),
        "Metrics on the validation set": (_quality(facts), ""),
        f"Learning rate{all_rates}": (rates, ""),
        "Gradient norm before clipping": ({"": (train, "grad_norm", "-")}, "log"),
        f"{noun_of(facts.description).capitalize()}s per second": ({"": (timed, "images_per_second", "-")}, "from 0"),
        "Tokens per second": ({"": (timed, "tokens_per_second", "-")}, "from 0"),
        "Share of padding in the batches": ({"": (timed, "padding_share", "-")}, "from 0"),
        "Share of the time waiting for data": ({"": (timed, "data_wait_share", "-")}, "from 0"),
    }
    drawn = []
    for title, (lines, scale) in charts.items():
        found = {label: points for label, line in lines.items() if len((points := _points(places, line))[0])}
        if found:
            drawn.append((title, as_svg(partial(_line_chart, found, places, scale, any(found)), title)))
    return drawn


def _quality(facts: RunFacts) -> Lines:
    metric = facts.metric
    names = [metric, *(name for name in ("balanced_accuracy", "macro_f1") if is_share(metric) and name != metric)]
    labels = {metric_name(name): name for name in names} | {f"{metric_name(metric)} (moving average)": f"ema_{metric}"}
    return {label: (facts.evaluations, name, "o-") for label, name in labels.items()}


def _rates(train: Sequence[Row]) -> tuple[Lines, str]:
    """The rates of the groups of parameters; of many (layer decay), the largest, the median and the smallest."""
    rows = [{**row, **few_rates(row)} for row in train]
    names = dict.fromkeys(name for row in train for name in few_rates(row))
    groups = max((sum(name.startswith("lr/") for name in row) for row in train), default=0)
    note = f" ({groups} parameter groups)" if len(names) > 1 else ""
    return {name.removeprefix("lr/"): (rows, name, "-") for name in names}, note


Points = tuple[Floats, Floats, str]


def _points(places: _Places, line: tuple[list[Row], str, str]) -> Points:
    """The points of a value, with a gap in the line between the probe and the training."""
    rows, name, style = line
    known = [row for row in rows if isinstance(row.get(name), (int, float))]
    x, y = np.empty(0), np.empty(0)
    for is_of_probe in (True, False):
        part = [row for row in known if (row.get("phase") == PROBE) == is_of_probe]
        own = _thinned(np.array([places.of(row) for row in part]), np.array([float(row[name]) for row in part]))
        gap = [np.nan] if len(x) and part else []
        x, y = (np.concatenate([before, gap, new]) for before, new in zip((x, y), own, strict=True))
    return x, y, style


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The points; if there are many, the least and the largest of each stretch, so that no peak is lost."""
    if len(x) <= _MOST_POINTS:
        return x, y
    kept = set()
    for stretch in np.array_split(np.arange(len(x)), _MOST_POINTS // 2):
        kept |= {int(stretch[np.argmin(y[stretch])]), int(stretch[np.argmax(y[stretch])])}
    order = sorted(kept)
    return x[order], y[order]


def _line_chart(lines: Mapping[str, Points], places: _Places | None, scale: str, has_legend: bool) -> "Figure":
    """`scale` is "log", "from 0" or empty."""
    figure = new_figure(WIDTH, HEIGHT)
    figure.set_layout_engine("none")  # which would draw all twice
    axes = figure.add_subplot()
    for number, (label, (x, y, style)) in enumerate(lines.items()):
        colour = SERIES[number % len(SERIES)]
        marker = "o" if style.startswith("o") or len(x) == 1 else None
        axes.plot(x, y, color=colour, linewidth=1.4, marker=marker, markersize=3.5, label=label or None, clip_on=False)
    plain_ticks(axes.xaxis)
    if scale == "log" and any((y > 0).any() for _, y, _ in lines.values()):
        axes.set_yscale("log")
        _plain_log(axes.yaxis)
    else:
        plain_ticks(axes.yaxis)
    if scale == "from 0":
        highest = max(float(np.nanmax(y)) for _, y, _ in lines.values())
        axes.set_ylim(0, 1.08 * highest or 1.0)
    if has_legend:
        axes.legend(loc="best")
    axes.margins(x=0.02)
    axes.set_xlabel("epoch")
    if places:
        places.mark(axes)
    _leave_room(axes)
    return figure


def _plain_log(axis: Any) -> None:
    """Numbers instead of powers of 10 at a logarithmic axis, where matplotlib would write any."""
    from matplotlib.ticker import LogFormatterMathtext

    class Plain(LogFormatterMathtext):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return readable(x) if super().__call__(x, pos) else ""

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain(minor_thresholds=(1, 0.4)))


def _leave_room(axes: Any) -> None:
    """Place the axes so that the longest number beside them fits into the chart."""
    labels = [each.get_text() for minor in (False, True) for each in axes.get_yticklabels(minor=minor)]
    left = _BESIDE + _LETTER * max(map(len, labels), default=0)
    axes.set_position((left, _BOTTOM, _RIGHT - left, _TOP - _BOTTOM))


def overlay(runs: Sequence[RunFacts], split: str, metric: str) -> Markup | None:
    """A value of several runs over their epochs, in the colours of their order."""
    lines: dict[str, Points] = {}
    for number, run in enumerate(runs):
        rows = [row for row in run.rows if row["split"] == split and row.get("phase") != PROBE]
        rows = [row for row in rows if row.get(metric) or metric != "images_per_second"]  # 0 in a start's first steps
        x, y, _ = _points(_Places(rows, []), (rows, metric, "-"))
        lines[str(number)] = (x, y, "o-" if split == "val" else "-")
    if not any(len(x) for x, _, _ in lines.values()):
        return None
    return as_svg(partial(_line_chart, lines, None, "", False), f"{metric_name(metric)} on {split}")


def reliability_svg(bins: Reliability) -> Markup:
    """The reliability diagram."""
    return as_svg(
        lambda: _sized(reliability_chart(bins.confidence, bins.accuracy, bins.samples)), "Reliability diagram"
    )


def scatter_svg(name: str, true: Floats, predicted: Floats) -> Markup:
    """Predicted over true values of one number."""

    def draw() -> "Figure":
        figure = _sized(scatter_chart(true, predicted, name))
        for dots in figure.axes[0].collections:
            dots.set_rasterized(len(true) > _MOST_DOTS)
        return figure

    return as_svg(draw, "Predicted over true values")


def ranking_svgs(scored_set: ScoredSet) -> list[tuple[str, Markup]]:
    """Precision-recall and ROC curves of the rarest classes: title and chart; none for a set without classes."""
    precision, rates = ranking_curves(scored_set, len(SERIES))
    rest = len(scored_set.names) - len(precision)
    of = f" of the {len(precision)} rarest classes" if rest else ""
    charts = {f"Precision-recall curves{of}": (pr_chart, precision), f"ROC curves{of}": (roc_chart, rates)}
    return [
        (title, as_svg(partial(_sized_chart, chart, found), title)) for title, (chart, found) in charts.items() if found
    ]


def _sized_chart(chart: "Callable[[Sequence[Curve]], Figure]", curves: Sequence[Curve]) -> "Figure":
    return _sized(chart(curves), LEGEND_ROW * legend_rows(curves))


def _sized(figure: "Figure", legend: float = 0.0) -> "Figure":
    """The figure in a report's size; `legend`: inches below the chart."""
    figure.set_size_inches(WIDTH, WIDTH * 0.8 + legend)
    return figure
