"""Which tests are told of as grown."""

from tests.support.durations import grown, read_durations, write_durations


def test_what_grew_is_told_apart_from_a_slow_machine():
    kept = {"a": 2.0, "b": 4.0, "c": 3.0, "d": 8.0}
    slow_machine = {name: 3 * seconds for name, seconds in kept.items()}
    assert grown(slow_machine, kept) == []
    [line] = grown({**slow_machine, "c": 30.0}, kept)
    assert line.startswith("30.0 s, was 9.0 s") and line.endswith(" c")
    [line] = grown({**kept, "new": 9.0}, kept)
    assert line.endswith(" new")


def test_kept_durations_are_read_as_they_were_written(tmp_path):
    write_durations(tmp_path / "f" / "d.tsv", {"b::x": 2.04, "a::y": 1.0, "short": 0.9})
    assert read_durations(tmp_path / "f" / "d.tsv") == {"a::y": 1.0, "b::x": 2.0}
    assert read_durations(tmp_path / "none") == {}
