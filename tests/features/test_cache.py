"""The table of features on disk: what is complete counts, and nothing else."""

import os

import pytest
import torch

from ddp_ft.features.cache import ROWS, ChunkStore

TABLE = torch.arange(22.0).view(11, 2)
CHUNKS = list(torch.split(TABLE, 4))


def store_in(folder, chunks=(0, 1, 2)):
    store = ChunkStore(folder, 11, 4)
    assert all(store.write(chunk, CHUNKS[chunk]) for chunk in chunks)
    store.finish()
    return store


def held(folder):
    store = ChunkStore(folder, 11, 4)
    return [chunk for chunk in range(3) if store.holds(chunk)]


def test_writers_in_any_order_make_one_table(tmp_path):
    store_in(tmp_path, (2,))
    store = store_in(tmp_path, (1, 0))
    assert torch.equal(store.mapped((2,)), TABLE)
    again = ChunkStore(tmp_path, 11, 4)
    assert again.known == 3 and again.shape == (2,) and again.damaged == 0
    assert torch.equal(again.read(2), CHUNKS[2])


def test_the_same_chunk_twice_does_no_harm(tmp_path):
    first, second = ChunkStore(tmp_path, 11, 4), ChunkStore(tmp_path, 11, 4)
    for chunk in range(3):
        assert first.write(chunk, CHUNKS[chunk]) and second.write(2 - chunk, CHUNKS[2 - chunk])
    assert held(tmp_path) == [0, 1, 2] and torch.equal(first.mapped((2,)), TABLE)


def test_what_was_not_completed_is_not_there(tmp_path):
    store_in(tmp_path, (0,))
    with (tmp_path / ROWS).open("ab") as stream:
        stream.write(CHUNKS[1].numpy().tobytes())  # a process that was killed before it wrote its line
    assert held(tmp_path) == [0]


def test_changes_of_a_mapped_table_stay_in_the_process(tmp_path):
    store_in(tmp_path).mapped((2,)).zero_()
    assert held(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("place", [0, 40, 87])
def test_a_changed_byte_is_noticed(tmp_path, place):
    store_in(tmp_path)
    content = bytearray((tmp_path / ROWS).read_bytes())
    content[place] ^= 1
    (tmp_path / ROWS).write_bytes(content)
    store = ChunkStore(tmp_path, 11, 4)
    assert not store.holds(place // 32) and store.damaged == 1
    assert store.write(place // 32, CHUNKS[place // 32])
    assert held(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("length", [0, 31, 87])
def test_a_shortened_file_is_noticed(tmp_path, length):
    store_in(tmp_path)
    os.truncate(tmp_path / ROWS, length)
    assert held(tmp_path) == list(range(length // 32))


@pytest.mark.parametrize(
    "line", ["", "{", "7", "[]", '{"chunk": 9, "shape": [2], "crc": 1}', '{"chunk": 1, "shape": 2}']
)
def test_damaged_lines_say_nothing(tmp_path, line):
    store_in(tmp_path, (0, 2))
    (tmp_path / "done-other.jsonl").write_text(line + "\n")
    assert held(tmp_path) == [0, 2]


def test_a_table_without_its_rows_is_empty(tmp_path):
    store_in(tmp_path)
    (tmp_path / ROWS).unlink()
    assert held(tmp_path) == []


def test_a_chunk_for_this_start_alone(tmp_path):
    store = ChunkStore(tmp_path, 11, 4)
    assert store.write(0, CHUNKS[0], lasting=False) and torch.equal(store.read(0), CHUNKS[0])
    assert held(tmp_path) == []


def test_a_folder_that_cannot_be_written_to(tmp_path):
    store = ChunkStore(tmp_path / "is not there", 11, 4)
    assert not store.write(0, CHUNKS[0]) and "No such file" in store.error
    assert not store.write(1, CHUNKS[1])
