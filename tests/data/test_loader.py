import itertools
import os
import sys
from pathlib import Path

import pytest
import torch

from ddp_ft.config.data import DataConfig
from ddp_ft.config.schema import AugmentConfig
from ddp_ft.contracts import Batch, Source
from ddp_ft.data.bad_samples.find import read_all
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import eval_transform, train_transform
from ddp_ft.data.loader import TrainLoader
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.data.sources.files import FileSource
from ddp_ft.data.sources.predict_inputs import list_images
from ddp_ft.data.splits.open import open_splits
from ddp_ft.data.workers import default_workers
from ddp_ft.distributed import environment
from ddp_ft.distributed.stop_request import STOP_SIGNALS
from ddp_ft.errors import UserError
from tests.data.image.image_files import NumberSource, save_classes, save_image
from tests.support import loading
from tests.support.loading import eval_loader

PREPROCESS = Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3)
AUGMENT = train_transform(PREPROCESS, AugmentConfig(crop_min=0.2))
CENTRE = eval_transform(PREPROCESS)
KEYS = {
    "image": torch.uint8,
    "target": torch.int64,
    "weight": torch.float32,
    "index": torch.int64,
    "position": torch.int64,
}


def train_loader(
    size: int = 20, batch: int = 6, world: int = 1, rank: int = 0, micro: int | None = None,
    workers: int = 0, start: int = 0, total: int = 8, seed: int = 0, source: Source | None = None,
) -> TrainLoader:  # fmt: skip
    source = NumberSource(size) if source is None else source
    sampler = GlobalOrderSampler(len(source), batch, world, rank, seed)
    return loading.train_loader(source, AUGMENT, sampler, micro, workers, start, total)


def by_position(world: int, workers: int, micro: int | None = None) -> dict[int, bytes]:
    """The augmented pixels of all positions, over all ranks; ghosts must repeat what they are ghosts of."""
    seen: dict[int, bytes] = {}
    for rank in range(world):
        for batch in itertools.chain.from_iterable(train_loader(world=world, rank=rank, workers=workers, micro=micro)):
            for position, image in zip(batch["position"].tolist(), batch["image"], strict=True):
                pixels = image.contiguous().numpy().tobytes()
                assert seen.setdefault(position, pixels) == pixels
    return seen


def test_pixels_depend_on_neither_ranks_nor_workers() -> None:
    expected = by_position(1, 0)
    assert sorted(expected) == list(range(40))
    assert len(set(expected.values())) == 40  # the second epoch is augmented anew
    for world, workers, micro in ((2, 0, None), (3, 0, 1), (5, 0, None), (1, 1, 2), (1, 2, None), (2, 1, 3), (3, 2, 2)):
        assert by_position(world, workers, micro) == expected


def test_pixels_follow_the_seed() -> None:
    first, other = (next(iter(train_loader(seed=seed, batch=20)))[0] for seed in (0, 1))
    order, reverse = first["index"].argsort(), other["index"].argsort()
    assert not torch.equal(first["image"][order], other["image"][reverse])


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_in_the_middle_gives_the_tail(workers: int) -> None:
    whole = list(train_loader(workers=0, micro=4))
    for start in (0, 3, 4, 7, 8):
        tail = list(train_loader(workers=workers, micro=4, start=start))
        assert len(tail) == 8 - start == len(train_loader(start=start))
        for given, expected in zip(tail, whole[start:], strict=True):
            for batch, wanted in zip(given, expected, strict=True):
                assert set(batch) == set(wanted) and all(torch.equal(batch[name], wanted[name]) for name in batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_callers_generator_is_untouched(workers: int) -> None:
    before = torch.get_rng_state()
    list(train_loader(workers=workers, total=3))
    list(eval_loader(NumberSource(9), CENTRE, 4, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_micro_batches(workers: int) -> None:
    # 20 samples in steps of 5, over two ranks: shares of 3 and 2.
    for rank, lengths in ((0, [2, 1]), (1, [2])):
        loader = train_loader(batch=6, world=2, rank=rank, micro=2, workers=workers)
        for step, batches in enumerate(loader):
            assert [len(batch["image"]) for batch in batches] == lengths
            share = loader.sampler.share(step)
            assert [k for batch in batches for k in batch["position"].tolist()] == [a.position for a in share]
            assert [k for batch in batches for k in batch["index"].tolist()] == [a.index for a in share]


def test_what_is_in_a_batch() -> None:
    batch = next(iter(train_loader()))[0]
    assert {name: tensor.dtype for name, tensor in batch.items()} == KEYS
    assert batch["image"].shape == (5, 3, 8, 8)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch["target"], batch["index"] % 7) and (batch["weight"] == 1).all()


def test_ghosts_weigh_nothing() -> None:
    weights = [
        [[batch["weight"].tolist() for batch in batches] for batches in train_loader(5, 4, 3, rank, total=2)]
        for rank in range(3)
    ]
    assert weights == [[[[1.0]], [[1.0]]], [[[1.0]], [[1.0]]], [[[0.0]], [[1.0]]]]


class WeightedSource(NumberSource):
    """Samples with a weight each, and with several numbers to learn."""

    def read(self, index: int) -> Batch:
        target = torch.tensor([index, 0.5])
        return super().read(index) | {"weight": torch.tensor(index / 10), "target": target}


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_own_weights_and_vectors_as_targets(workers: int) -> None:
    (batch,) = next(iter(train_loader(source=WeightedSource(20), workers=workers)))
    assert batch["weight"].dtype == torch.float32 and torch.equal(batch["weight"], batch["index"] / 10)
    assert batch["target"].shape == (5, 2) and torch.equal(batch["target"][:, 0], batch["index"].float())
    for batch in eval_loader(WeightedSource(9), CENTRE, 4, workers=workers):
        assert torch.equal(batch["weight"], batch["index"] / 10)
    ghost = next(iter(train_loader(batch=4, world=3, rank=2, source=WeightedSource(5))))[0]
    assert ghost["index"] > 0 and ghost["weight"].tolist() == [0.0]


def eval_batches(size: int, world: int, chunk: int = 8, workers: int = 0) -> list[list[Batch]]:
    loaders = [eval_loader(NumberSource(size), CENTRE, chunk, world, rank, workers) for rank in range(world)]
    batches = [list(loader) for loader in loaders]
    assert [len(part) for part in batches] == [len(loader) for loader in loaders]
    return batches


@pytest.mark.parametrize(("size", "world", "workers"), [(101, 1, 0), (101, 2, 1), (101, 3, 0), (1, 3, 1), (16, 3, 2)])
def test_evaluation_covers_each_sample_once(size: int, world: int, workers: int) -> None:
    batches = list(itertools.chain.from_iterable(eval_batches(size, world, workers=workers)))
    seen = sorted(k for batch in batches for k in batch["index"].tolist())
    assert seen == list(range(size))
    source = NumberSource(size)
    for batch in batches:
        assert (batch["weight"] == 1).all() and torch.equal(batch["target"], batch["index"] % 7)
        assert torch.equal(batch["image"][0], CENTRE(source.read(int(batch["index"][0]))["image"]))


def test_chunks_are_dealt_whole_and_in_turn() -> None:
    batches = eval_batches(20, 2)
    assert [[batch["index"].tolist() for batch in part] for part in batches] == [
        [list(range(8)), [16, 17, 18, 19]],
        [list(range(8, 16))],
    ]


@pytest.fixture
def damaged_folder(tmp_path: Path) -> Path:
    save_classes(tmp_path, {"a": 40, "b": 40})
    for name in ("a/007.png", "b/033.png", "b/002.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    (tmp_path / "a" / "011.png").write_text("hello")
    return tmp_path


def test_all_damaged_images_are_found(damaged_folder: Path) -> None:
    source = FileSource(list_images([str(damaged_folder)]))
    found = [(source.name(index), reason) for index, reason in read_all(source)]
    assert [Path(name).name for name, _ in found] == ["007.png", "011.png", "002.png", "033.png"]
    assert found[1] == (str(damaged_folder / "a" / "011.png"), "not an image")
    assert all(reason and "\n" not in reason for _, reason in found)
    assert read_all(NumberSource(3)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_all_listed_once(damaged_folder: Path, workers: int) -> None:
    splits = open_splits(DataConfig(path=damaged_folder, val_split=0.05), seed=2)
    bad = [name for name in ("a/007", "a/011", "b/002", "b/033") if f"{name}.png" in splits.train.paths]
    assert len(bad) >= 3
    loader = train_loader(batch=4, workers=workers, total=100, source=splits.train)
    with pytest.raises(UserError) as caught:
        list(loader)
    assert caught.value.message.startswith(f"{len(bad)} of {len(splits.train)} images")
    for name in bad:
        assert str(caught.value).count(f"{damaged_folder}/{name}.png: ") == 1
    assert "Traceback" not in str(caught.value)


def test_many_damaged_images_are_counted() -> None:
    with pytest.raises(UserError) as caught:
        list(eval_loader(NumberSource(200, bad=range(50, 150)), CENTRE, 16))
    assert caught.value.message.startswith("100 of 200")
    lines = caught.value.hint.splitlines()
    assert lines[0].strip() == "number/50: torn in two" and lines[20].strip() == "... and 80 more"
    assert len(lines) == 22


def test_damage_that_heals_is_still_named() -> None:
    class Flaky(NumberSource):
        def read(self, index: int) -> Batch:
            bad, self.bad = self.bad, self.bad - {index}
            return NumberSource(len(self), bad).read(index)

    with pytest.raises(UserError, match=r"1 of 5[^\n]*\n  number/2: torn in two"):
        list(eval_loader(Flaky(5, bad=[2]), CENTRE, 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_prediction_gets_damage_beside_the_batch(workers: int) -> None:
    loader = eval_loader(NumberSource(10, bad=[1, 4, 5, 6, 7]), CENTRE, 4, workers=workers)
    portions = list(loader.portions())
    assert [portion.batch and portion.batch["index"].tolist() for portion in portions] == [[0, 2, 3], None, [8, 9]]
    reason = "torn in two"
    assert [portion.damaged for portion in portions] == [{1: reason}, dict.fromkeys((4, 5, 6, 7), reason), {}]


def test_images_for_prediction(tmp_path: Path) -> None:
    files = [save_image(tmp_path / "a.jpg"), save_image(tmp_path / "b.png", seed=1, size=(9, 30))]
    batch = next(iter(eval_loader(FileSource(files), CENTRE, 4)))
    assert set(batch) == set(KEYS) - {"target"} and batch["image"].shape == (2, 3, 8, 8)


class SignalSource(NumberSource):
    """Each read sends its own process the signals by which a whole group is asked to stop."""

    def read(self, index: int) -> Batch:
        if self.parent != os.getpid():
            for number in STOP_SIGNALS:
                os.kill(os.getpid(), number)
        return super().read(index)

    parent = 0


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")
def test_workers_outlive_signals_to_the_group() -> None:
    source = SignalSource(20)
    source.parent = os.getpid()
    assert len(list(train_loader(source=source, workers=2, total=4))) == 4


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_the_iterator() -> None:
    before = children()
    batches = iter(train_loader(workers=2))
    next(batches)
    assert len(children() - before) == 2
    batches.close()
    assert children() == before
    with pytest.raises(UserError):
        list(train_loader(workers=2, source=NumberSource(20, bad=[3])))
    assert children() == before


@pytest.mark.parametrize(
    ("cores", "device", "ranks", "expected"),
    [
        *[(16, "cuda", 1, 15), (16, "cuda", 8, 1), (64, "cuda", 1, 16), (1, "cuda", 1, 1), (4, "cuda", 8, 1)],
        *[(1, "cpu", 1, 0), (2, "cpu", 1, 1), (2, "cpu", 2, 0), (16, "cpu", 4, 1), (2, "cpu", 3, 0)],
    ],
)
def test_default_workers(monkeypatch, cores: int, device: str, ranks: int, expected: int) -> None:
    monkeypatch.setattr("ddp_ft.data.workers.usable_cores", lambda: cores)
    assert default_workers(device, ranks) == expected
    assert environment.usable_cores() >= 1
