"""Ranks that see other things than rank 0, and how fast they exchange."""

from dataclasses import replace
from pathlib import Path

import pytest

from ddp_ft.diagnostics import ranks
from ddp_ft.diagnostics.finding import OK, PROBLEM, WARNING, Finding
from ddp_ft.diagnostics.ranks import Seen
from ddp_ft.run_folder import shared
from tests.data.image.image_files import save_classes
from tests.support.ranks import run_ranks

ALIKE = Seen("a", {"torch": "2.15"}, "c0de", "da7a")


def look(world, data: Path, run_dirs: list[Path]):
    """Each rank with its own folders, as on nodes that share no disk."""
    shared.PATIENCE_SECONDS = 0.3
    seen = ranks.exchange(world, data / str(world.rank), run_dirs[world.rank])
    latency, speeds = ranks.measure_reduction(world)
    found = None if seen is None else list(ranks.compare(seen))
    return found, latency, speeds, ranks.reduction(latency, speeds, 1).name


def test_two_ranks_with_other_folders(tmp_path):
    save_classes(tmp_path / "0", {"cat": 2, "dog": 2})
    save_classes(tmp_path / "1", {"cat": 2, "dog": 1})
    run_dirs = [tmp_path / "run0", tmp_path / "run1"]
    run_dirs[1].mkdir()
    (found, latency, speeds, name), other = run_ranks(2, look, tmp_path, run_dirs)
    assert {finding.name: finding.verdict for finding in found} == {
        "same versions": OK, "same ddp_ft": OK, "same data": PROBLEM, "same run folder": PROBLEM, "clocks": OK,
    }  # fmt: skip
    assert (other[0], other[1:]) == (None, (latency, speeds, name))
    assert latency > 0 and all(speeds[size] > 0 for size in (1, 16, 64))
    assert [path.name for path in tmp_path.rglob(".shared_*")] == []


def test_two_ranks_with_the_same_folders(tmp_path):
    for rank in "01":
        save_classes(tmp_path / rank, {"cat": 2, "dog": 2})
    (found, *_), _ = run_ranks(2, look, tmp_path, [tmp_path / "run"] * 2)
    assert {finding.verdict for finding in found} == {OK}


@pytest.mark.parametrize(
    "name, verdict, other",
    [
        ("same versions", PROBLEM, replace(ALIKE, versions={"torch": "2.11"})),
        ("same versions", PROBLEM, replace(ALIKE, versions={})),
        ("same ddp_ft", PROBLEM, replace(ALIKE, code="else")),
        ("same data", PROBLEM, replace(ALIKE, data="else")),
        ("same run folder", PROBLEM, replace(ALIKE, has_run=False)),
        ("clocks", WARNING, replace(ALIKE, clock=-60.0)),
    ],
)
def test_each_difference(name, verdict, other):
    found = {finding.name: finding for finding in ranks.compare([ALIKE, ALIKE, other])}
    assert [each for each in found if found[each].verdict != OK] == [name]
    assert (found[name].verdict, bool(found[name].remedy)) == (verdict, True)


def test_troubles_of_another_node_are_told_with_its_name():
    trouble = Finding("shared memory", PROBLEM, "64 MiB free", "More.")
    *_, found = ranks.compare([ALIKE, ALIKE, replace(ALIKE, host="b", troubles=(trouble,))])
    assert found == replace(trouble, text="on b (rank 2): 64 MiB free")


def test_a_slow_network():
    assert ranks.reduction(1e-3, {1: 50.0, 64: 99.0}, 2).verdict == WARNING
    assert ranks.reduction(1e-3, {1: 50.0, 64: 101.0}, 2).verdict == OK


def test_another_table_has_another_hash(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "b.csv").write_text("y")
    assert ranks.hash_names(tmp_path / "a.csv") != ranks.hash_names(tmp_path / "b.csv")
    assert "No such file" in ranks.hash_names(tmp_path / "gone")
