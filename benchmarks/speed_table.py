"""The tables of throughput: medians with the least and the largest, and ratios within rounds."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.contenders import LIMIT
from benchmarks.race import Record
from benchmarks.workload import Workload

HEADER = (
    "",
    "images/s: median [least, largest] of rounds",
    "of the limit",
    "of the best peer",
    "CPU ms an image",
    "notes",
)


def speed_table(records: Sequence[Record], missing: Iterable[str] = ()) -> str:
    """One row a contender, as markdown. Ratios are medians of the rounds' ratios, which a machine that changes its
    speed from minute to minute disturbs less than the ratio of medians."""
    limit = next((each for each in records if each.contender.key == LIMIT and each.outcomes), None)
    peer = best_peer(records)
    rows = [_row(each, limit, peer) for each in records]
    lines = [_line(HEADER), _line(["---"] * len(HEADER)), *map(_line, rows)]
    return "\n".join([*lines, *(f"\nNot installed, so not measured: {name}." for name in missing)])


def best_peer(records: Iterable[Record]) -> Record | None:
    """The other tool with the largest median; None if none was measured."""
    peers = [each for each in records if each.contender.peer and each.outcomes]
    return max(peers, key=lambda each: median(speeds(each).values()), default=None)


def speeds(record: Record) -> dict[int, float]:
    """{round: images per second}."""
    return {number: outcome.images_per_second for number, outcome in record.outcomes.items()}


def ratio(record: Record, other: Record | None) -> float | None:
    """The median over the rounds that have both of how many times as fast the record is; None without any."""
    if other is None:
        return None
    mine, theirs = speeds(record), speeds(other)
    both = [mine[number] / theirs[number] for number in mine if number in theirs]
    return median(both) if both else None


def _row(record: Record, limit: Record | None, peer: Record | None) -> list[str]:
    title = record.contender.title
    if not record.outcomes:
        return [title, _one_line(record.failure), "", "", "", ""]
    found = list(speeds(record).values())
    # Three digits; hundredths of an image would be noise.
    figures = f"{median(found):.4g} [{min(found):.4g}, {max(found):.4g}]"
    notes = next(iter(record.outcomes.values())).notes
    failure = f"; then failed: {_one_line(record.failure)}" if record.failure else ""
    bold = "**" if not record.contender.peer and not record.contender.key.startswith("limit") else ""
    ratios = (_share(ratio(record, limit)), _share(ratio(record, peer)))
    return [f"{bold}{title}{bold}", f"{bold}{figures}{bold}", *ratios, _cpu(record), f"{notes}{failure}"]


def _cpu(record: Record) -> str:
    found = [each.cpu_ms_per_image for each in record.outcomes.values() if each.cpu_ms_per_image is not None]
    return f"{median(found):.1f}" if found else ""


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _one_line(text: str) -> str:
    lines = text.strip().splitlines()
    return f"failed: {lines[-1][:200]}" if lines else ""


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def describe(workload: Workload) -> str:
    """The workload in one line."""
    return (
        f"timm/{workload.model}, {workload.image_size} px, {workload.precision}, {workload.device}, "
        f"{workload.processes} process{'es' if workload.processes > 1 else ''} x {workload.batch} images a step, "
        f"{workload.threads} thread(s) and {workload.workers} loader worker(s) each, "
        f"{workload.steps} steps of {workload.images} files x {workload.epochs} epoch(s)"
    )


def stage_table(stages: Mapping[str, Mapping[str, float | str]]) -> str:
    """One row a stage, as markdown: milliseconds, of what, and per step of a process where that makes sense."""
    head = ("stage", "ms", "for", "ms a step", "what it is")
    rows = [
        [name, f"{row['ms']:.3g}", str(row["unit"]), _per_step(row), str(row["about"])] for name, row in stages.items()
    ]
    return "\n".join([_line(head), _line(["---"] * len(head)), *map(_line, rows)])


def _per_step(row: Mapping[str, float | str]) -> str:
    return f"{row['per_step']:.3g}" if "per_step" in row else ""
