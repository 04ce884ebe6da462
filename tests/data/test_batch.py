"""Batches with values of uneven length: the same whichever way they were put together."""

import pytest
import torch

from ddp_ft.data.batch import chosen, cut, first_samples, joined, stacked

LENGTHS = [3, 1, 4, 1, 5, 2, 6, 2]


def sample(number: int):
    """Rows of two values each, as many as the length says, and a number."""
    rows = torch.arange(2 * LENGTHS[number]).view(-1, 2) + 100 * number + 1
    return {"rows": rows, "rows_length": torch.tensor(len(rows)), "index": torch.tensor(number)}


def batch_of(*numbers: int):
    return stacked([sample(number) for number in numbers])


def assert_equal(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name


def test_padding_is_with_0_to_the_longest() -> None:
    batch = batch_of(0, 2, 1)
    assert batch["rows"].shape == (3, 4, 2) and batch["rows_length"].tolist() == [3, 4, 1]
    assert batch["rows"][0, 2].tolist() == [5, 6] and not batch["rows"][0, 3:].any() and not batch["rows"][2, 1:].any()


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8, 9])
@pytest.mark.parametrize("before", [(8,), (3, 5), (4, 4), (1, 6, 1)])
def test_cut_as_samples_that_were_never_together(before: tuple[int, ...], most: int) -> None:
    starts = [sum(before[:place]) for place in range(len(before))]
    batches = [batch_of(*range(start, start + size)) for start, size in zip(starts, before, strict=True)]
    found = cut(batches, most)
    wanted = [batch_of(*range(start, min(8, start + most))) for start in range(0, 8, most)]
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert_equal(one, other)


def test_joined_and_put_in_order() -> None:
    whole = joined([batch_of(5, 1), batch_of(6), batch_of(0, 2)])
    assert_equal(whole, batch_of(5, 1, 6, 0, 2))
    assert_equal(chosen(whole, torch.tensor([3, 1, 4])), batch_of(0, 1, 2))
    assert_equal(first_samples(whole, 2), batch_of(5, 1))


def test_partners_keep_their_names_within_the_batch() -> None:
    """Samples that are mixed name each other by their places."""
    pairs = [{"mix_partner": torch.tensor([1, 0])}, {"mix_partner": torch.tensor([1, 0, 2])}]
    assert joined(pairs)["mix_partner"].tolist() == [1, 0, 3, 2, 4]
    assert [part["mix_partner"].tolist() for part in cut(pairs, 4)] == [[1, 0, 3, 2], [0]]


def test_a_batch_of_nothing_but_empty_values() -> None:
    empty = stacked([{"rows": torch.empty(0, dtype=torch.uint8), "rows_length": torch.tensor(0)}] * 2)
    assert empty["rows"].shape == (2, 0)
    assert cut([empty], 1)[1]["rows"].shape == (1, 0)
