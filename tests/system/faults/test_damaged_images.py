"""data.on_error: damaged images end the run, or others take their place: the same ones however it is run."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from ddp_ft.config.data import DataConfig
from ddp_ft.contracts import BadSample, Batch, StorageFault
from ddp_ft.data.bad_samples.quarantine import Quarantine
from ddp_ft.data.bad_samples.replace import Lenient, leave_out_damaged, left_out
from ddp_ft.data.loader import SampleError
from ddp_ft.data.sampler import GlobalOrderSampler, sampling_weights
from ddp_ft.data.splits.open import open_splits
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from tests.support import nets
from tests.support.images import write_shapes
from tests.support.loading import eval_loader, train_loader
from tests.support.ranks import run_ranks
from tests.support.runs import arguments, call_on, column, read, train_here, train_on
from tests.system.faults.forks import train_killed

SKIP = ["--set", "data.on_error=skip"]
MANY = [*SKIP, "--set", "data.max_damaged=0.5"]
ALONE = World(0, 1, 0, torch.device("cpu"))


class Numbers:
    """Samples whose pixels say their number; those in `bad` are damaged, those in `lost` the disk does not give."""

    def __init__(self, size: int, bad=(), lost=()) -> None:
        self.targets = np.arange(size) % 3
        self.weights = None
        self.bad, self.lost = frozenset(bad), frozenset(lost)

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        return f"number/{index}"

    def read(self, index: int) -> Batch:
        if index in self.lost:
            raise StorageFault(f"{self.name(index)}: Stale file handle")
        if index in self.bad:
            raise BadSample(f"{self.name(index)}: torn in two")
        return {"image": torch.full((3, 4, 4), index, dtype=torch.uint8), "target": torch.tensor(self.targets[index])}


def noisy(image):
    """Augmentation that tells from which stream of numbers it was drawn."""
    return image + torch.randint(0, 100, (3, 1, 1), dtype=torch.uint8)


def lenient(size: int = 20, bad=(2, 11), lost=(), seed: int = 0, share: float = 0.5, weights=None) -> Lenient:
    quarantine = Quarantine({"train": size}, share)
    return Lenient(Numbers(size, bad, lost), seed, weights, quarantine)


def loader(source, world: int = 1, rank: int = 0, workers: int = 0, start: int = 0, total: int = 9, transform=noisy):
    sampler = GlobalOrderSampler(len(source), 7, world, rank, seed=3)
    return train_loader(source, transform, sampler, None, workers, start, total)


def visits(source, world: int = 1, workers: int = 0, **options) -> dict[int, tuple[int, int, bytes]]:
    """What is seen at each position, over all ranks: the sample, its label and its pixels."""
    seen = {}
    for rank in range(world):
        for batch in itertools.chain.from_iterable(loader(source, world, rank, workers, **options)):
            rows = zip(*(batch[name].tolist() for name in ("position", "index", "target")), batch["image"], strict=True)
            for position, index, target, image in rows:
                seen[position] = index, target, image.contiguous().numpy().tobytes()
    return seen


def test_the_same_samples_stand_in_however_it_is_run():
    expected = visits(lenient())
    assert sorted(expected) == list(range(60))
    whole = visits(Numbers(20))
    for position, (index, target, pixels) in whole.items():
        stands_in = expected[position]
        assert stands_in[0] not in (2, 11) and stands_in[1] == stands_in[0] % 3, "label and image go together"
        if index not in (2, 11):
            assert stands_in == (index, target, pixels)
    stand_ins = {index: {expected[p][0] for p, seen in whole.items() if seen[0] == index} for index in (2, 11)}
    assert all(len(found) == 1 for found in stand_ins.values()), "the same in each epoch"
    for world, workers in ((2, 0), (3, 0), (1, 2), (3, 1)):
        assert visits(lenient(), world, workers) == expected
    resumed = visits(lenient(), 2, start=4)
    assert resumed == {position: expected[position] for position in resumed} and len(resumed) == 60 - 26


def test_stand_ins_follow_the_seed_and_the_damaged_sample():
    found = {(seed, index): list(lenient(seed=seed).replacements(index))[:4] for seed in (0, 1) for index in (2, 11)}
    assert len(set(map(tuple, found.values()))) == 4
    # A change here would let a run go on with other samples than it began with.
    assert found[0, 2] == [9, 3, 12, 14]


def test_a_stand_in_that_is_damaged_is_replaced_too():
    first, second, *_ = lenient().replacements(2)
    source = lenient(bad=(2, first))
    seen = visits(source)
    assert first != second and {index for index, _, _ in seen.values()} == set(range(20)) - {2, first}
    source.quarantine.settle(ALONE, lambda _: None)
    assert set(source.quarantine.known) == {("train", "number/2"), ("train", f"number/{first}")}


def test_what_is_never_drawn_never_stands_in():
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    source = lenient(6, bad=(), weights=weights)
    drawn = [chosen for index in range(6) for chosen in source.replacements(index)]
    assert set(drawn) == {1, 2, 4}
    balanced = sampling_weights("balanced", np.array([0] * 90 + [1] * 10), None, "label")
    often = [chosen for index in range(20) for chosen in lenient(100, weights=balanced).replacements(index)]
    assert 0.4 < np.mean(np.array(often) >= 90) < 0.6


def _train_on_damage(world, folder: Path, share: float) -> tuple[int, list[str], str]:
    """The loop's part in it: (steps taken, what was said, the error) with 4 of 30 images damaged."""
    source = lenient(30, (1, 7, 8, 21), share=share)
    said: list[str] = []
    if world.is_main:
        source.quarantine.open(folder)
    steps = 0
    try:
        for _ in loader(source, world.size, world.rank, total=12):
            if world.sum(torch.tensor([float(source.quarantine.has_news)])):
                source.quarantine.settle(world, said.append)
            steps += 1
    except UserError as error:
        return steps, said, str(error)
    return steps, said, ""


def test_each_is_recorded_once_over_ranks_epochs_and_starts(tmp_path):
    records = []
    for world in (1, 3):
        folder = tmp_path / str(world)
        folder.mkdir()
        for start in range(2):
            outcomes = run_ranks(world, _train_on_damage, folder, 0.5)
            said = [told for _, told, _ in outcomes]
            assert [len(told) for told in said] == ([4] if start == 0 else [0]) + [0] * (world - 1)
        records.append(sorted((folder / "quarantine.txt").read_text().splitlines()))
    assert records[0] == [f"number/{index}\ttrain\ttorn in two" for index in (1, 21, 7, 8)]
    assert records[0] == records[1]


def test_too_many_end_the_run_at_the_same_step_on_any_number_of_ranks(tmp_path):
    outcomes = set()
    for world in (1, 2, 3):
        folder = tmp_path / str(world)
        folder.mkdir()
        ranks = run_ranks(world, _train_on_damage, folder, 0.1)
        assert len({(steps, error) for steps, _, error in ranks}) == 1, "all ranks end alike"
        outcomes.add((ranks[0][0], ranks[0][2]))
        assert len((folder / "quarantine.txt").read_text().splitlines()) > 3
    ((steps, message),) = outcomes
    assert steps < 12 and "of 30 train images cannot be read; data.max_damaged = 0.1 allows 3" in message
    assert "number/7: torn in two" in message and "--set data.max_damaged" in message


def test_one_may_always_be_damaged():
    assert Quarantine({"train": 20, "val": 1000}, 0.0).limits == {"train": 1, "val": 1}
    assert Quarantine({"train": 100}, 0.29).limits == {"train": 29}


def test_a_line_that_a_kill_cut_short_is_written_again(tmp_path):
    (tmp_path / "quarantine.txt").write_text("a.png\ttrain\ttorn in two\nb.png\ttra")
    quarantine = Quarantine({"train": 9}, 1.0)
    quarantine.open(tmp_path)
    for path in ("b.png", "a.png", "odd\n\tname\udcff.png"):
        quarantine.report("train", path, "torn in two")
    quarantine.settle(ALONE, lambda _: None)
    lines = ["a.png", "b.png", "odd\\n\\tname\\udcff.png"]
    assert (tmp_path / "quarantine.txt").read_text() == "".join(f"{line}\ttrain\ttorn in two\n" for line in lines)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_disk_is_no_damage(workers):
    """What may be there at the next try must not change the samples."""
    source = lenient(lost=(5,))
    with pytest.raises(UserError, match=r"number/5 could not be read: Stale file handle"):
        visits(source, workers=workers)
    with pytest.raises(UserError, match=r"number/5 could not be read"):
        leave_out_damaged(Numbers(20, lost=(5,)), "val", source.quarantine)


class Broken(Numbers):
    """A source with a mistake in it."""

    def read(self, index: int) -> Batch:
        if index == 4:
            raise TypeError("a mistake")
        return super().read(index)


def stumbling(image):
    if image[0, 0, 0] == 4:
        raise ValueError("no such colour")
    return image


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [loader, lambda source, **options: eval_loader(source, options.pop("transform"), 4)])
def test_an_exception_beside_damage_names_the_sample(make, workers):
    with pytest.raises(SampleError, match=r"^number/4: ValueError: no such colour\n(?s:.)*in stumbling"):
        list(make(Numbers(20), workers=workers, transform=stumbling))
    with pytest.raises(SampleError, match=r"^number/4: TypeError"):
        list(make(Broken(20), workers=workers, transform=lambda image: image))


@pytest.fixture
def torn(tmp_path):
    """The shapes, with two images for training and one for validation cut short."""
    data = write_shapes(tmp_path / "data")
    for name in ("train/disc/03.png", "train/square/07.png", "val/disc/11.png"):
        (data / name).write_bytes((data / name).read_bytes()[:70])
    return data


def test_evaluation_is_without_damaged_images(torn):
    splits = open_splits(DataConfig(path=torn, on_error="skip", max_damaged=0.1), seed=0)
    assert len(splits.train) == 30 and len(splits.val) == 11 == len(splits.val.targets)
    assert list(left_out(splits.val)) == ["val/disc/11.png"]
    assert any("1 of 12 val images" in note and "val/disc/11.png" in note for note in splits.notes)
    plain = open_splits(DataConfig(path=torn), seed=0)
    assert plain.fingerprint == splits.fingerprint and plain.quarantine is None
    for world in (1, 2, 3):
        ranks = [eval_loader(splits.val, noisy_size, 4, world, rank) for rank in range(world)]
        batches = list(itertools.chain.from_iterable(ranks))
        assert sorted(k for batch in batches for k in batch["position"].tolist()) == list(range(11))
    with pytest.raises(UserError, match=r"1 of 12 images cannot be read"):
        list(eval_loader(plain.val, noisy_size, 4))


def noisy_size(image):
    return image[:, :8, :8]


def test_too_many_damaged_for_validation(torn):
    (torn / "val/disc/12.png").write_text("no image")
    with pytest.raises(UserError, match=r"2 of 12 val images cannot be read; .* allows 1"):
        open_splits(DataConfig(path=torn, on_error="skip"), seed=0)


def lines(run: Path) -> list[tuple[str, str]]:
    return sorted(tuple(line.split("\t")[:2]) for line in (run / "quarantine.txt").read_text().splitlines())


RECORD = [("train/disc/03.png", "train"), ("train/square/07.png", "train"), ("val/disc/11.png", "val")]


def test_runs_go_on_without_damaged_images(torn, tmp_path):
    """On one rank, on three, and continued on one: the same curve, and the same record."""
    constant = ["--schedule", "constant", "--set", "schedule.warmup=0"]
    with pytest.raises(UserError, match="2 of 30 images cannot be read"):
        train_here(torn, tmp_path / "w1", *constant, epochs=2)
    with pytest.raises(UserError, match=r"2 of 30 train images .* allows 1"):
        train_here(torn, tmp_path / "w1", *constant, *SKIP, epochs=2)
    train_here(torn, tmp_path / "w1", *constant, *MANY, epochs=2)  # the same folder: on_error may change
    output = train_on(3, torn, tmp_path / "w3", *constant, *MANY)
    assert output.count("train/disc/03.png") == output.count("val/disc/11.png") == 1
    train_here(torn, tmp_path / "w3", *constant, *MANY, "--extend", epochs=2)
    assert lines(tmp_path / "w1") == lines(tmp_path / "w3") == RECORD
    for split in ("train", "val"):
        expected = column(tmp_path / "w1", "loss", split)
        assert column(tmp_path / "w3", "loss", split) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_stand_ins(torn, tmp_path):
    options = [*MANY, "--set", "checkpoint.every_steps=2"]
    train_here(torn, tmp_path / "whole", *options, epochs=9)
    train_killed(arguments(torn, tmp_path / "cut", *options, epochs=9), tmp_path / "fault")
    train_here(torn, tmp_path / "cut", *options, epochs=9)
    assert lines(tmp_path / "cut") == RECORD
    assert column(tmp_path / "cut", "loss") == column(tmp_path / "whole", "loss")


@pytest.mark.parametrize("threads", [1, 2])
def test_features_of_a_damaged_image_are_those_of_its_stand_in(tmp_path, threads):
    """And so are its labels: a probe trains on them by their place. Its chunk is read again at each start, lest nobody
    be told of the damage."""
    from ddp_ft.data.image.processor import ImageTransform
    from ddp_ft.features.cache import ChunkStore
    from ddp_ft.features.extractor import Extractor, labelled
    from ddp_ft.models.libraries.base import call_with_images

    net = nets.plain()
    for known in (0, 2):
        source, store = lenient(), ChunkStore(tmp_path, 20, chunk=5)
        assert store.known == known
        extractor = Extractor(
            net, "6", call_with_images, lambda batch: {**batch, "image": batch["image"] / 255}, ALONE, "fp32",
            threads=threads, workers=1, in_rounds=lambda items, _: iter(items), chunk=5,
        )  # fmt: skip
        found = extractor.extract(source, ImageTransform(lambda image: image.repeat(1, 4, 4)), store, common=True)
        features = labelled([found], source, ALONE.device, on_device=2**30)
        assert source.quarantine.has_news
        for index in range(20):
            seen = next(k for k in source.replacements(index) if k not in (2, 11)) if index in (2, 11) else index
            assert torch.allclose(features.views[0][index], features.views[0][seen], atol=1e-6)
            assert features.targets[index] == source.targets[seen] and features.weights[index] == 1


def test_evaluate_leaves_out_what_its_run_would(torn, tmp_path):
    train_here(torn, tmp_path / "r", *MANY)
    results = []
    for world in (1, 2):
        output = tmp_path / f"{world}.json"
        call_on(world, "ddp_ft.evaluate", tmp_path / "r", "--data", torn, "--device", "cpu", "--output", output)
        results.append(read(tmp_path, output.name))
    assert results[0] == results[1]
    assert (results[0]["samples"], results[0]["damaged"]) == (11, 1)
    assert results[0]["loss"] == pytest.approx(column(tmp_path / "r", "loss", "val")[-1], rel=1e-4)
