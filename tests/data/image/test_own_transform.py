"""Augmentation of the user's own: what it is called with, what it draws from, and what is refused."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ddp_ft.config.loading import make_config
from ddp_ft.contracts import LABEL
from ddp_ft.data.image.augment import distortions
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.data.image.transforms import train_transform
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.errors import UserError
from ddp_ft.features.precompute import training_views
from tests.data.image.image_files import NumberSource
from tests.support.loading import train_loader
from tests.support.runs import column, train_here, train_on

PROCESSOR = ImageProcessor(Preprocess((24, 32), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)))
CODE = """
import random
import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

ready = v2.RandomErasing(1.0, value=[9.0, 9.0, 9.0])

class Noise:
    at_birth = None
    def __init__(self):
        self.at_birth = random.random() + np.random.rand() + float(torch.rand(()))
    def __call__(self, image):
        assert type(image) is tv_tensors.Image and image.dtype == torch.uint8 and torch.get_num_threads() == 1
        shift = int(torch.randint(9, ())) + 10 * random.randrange(9) + 100 * np.random.randint(2)
        return ((image.int() + shift) * (1 + int(50 * self.at_birth))).to(torch.uint8)

def plain(image):
    return 255 - image

def factory(strength=1.0):
    return v2.ColorJitter(strength)
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(CODE)
    return file


def config(reference: str, **more: object):
    return make_config({"augment.preset": "none", "augment.transform": reference, **more})


def by_position(reference: str, world: int, workers: int) -> dict[int, bytes]:
    """The pixels at each position of two epochs of twelve images."""
    seen: dict[int, bytes] = {}
    for rank in range(world):
        sampler = GlobalOrderSampler(12, 6, world, rank, seed=3)
        transform = train_transform(PROCESSOR.preprocess, config(reference).augment)
        for micro_batches in train_loader(NumberSource(12), transform, sampler, None, workers, 0, 4):
            for batch in micro_batches:
                pixels = [image.contiguous().numpy().tobytes() for image in batch["image"]]
                seen |= dict(zip(batch["position"].tolist(), pixels, strict=True))
    return seen


def test_pixels_depend_on_neither_ranks_nor_workers(code: Path) -> None:
    """Also what it draws from Python's and numpy's generators, whose own state matters nothing and stays."""
    expected = by_position(f"{code}:Noise", 1, 0)
    assert sorted(expected) == list(range(24)) and len(set(expected.values())) == 24
    random.seed(7)
    np.random.seed(7)
    states = random.getstate(), np.random.get_state()[1].tolist()
    for world, workers in ((1, 1), (1, 2), (2, 0), (2, 1)):
        assert by_position(f"{code}:Noise", world, workers) == expected
    assert states == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize("name", ["ready", "Noise", "plain", "factory"])
def test_it_comes_after_all_else(code: Path, name: str) -> None:
    """On what the built-in augmentation returns; the same from a copy that was sent to a spawned worker."""
    reference, image = f"{code}:{name}", torch.randint(256, (3, 40, 50), dtype=torch.uint8)
    layer = {"augment.preset": "medium", "augment.flip": 1.0}
    with_it = train_transform(PROCESSOR.preprocess, make_config({**layer, "augment.transform": reference}).augment)
    without = train_transform(PROCESSOR.preprocess, make_config(layer).augment)
    own = distortions(PROCESSOR.preprocess, config(reference).augment)
    PROCESSOR.check(config(reference), LABEL, torch.device("cpu"))
    torch.manual_seed(5)
    expected = own(without(image))
    for transform in (with_it, pickle.loads(pickle.dumps(with_it))):
        torch.manual_seed(5)
        found = transform(image)
        assert type(found) is torch.Tensor and found.shape == (3, 24, 32) and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("def mine(image): return image / 255", ["3 x 24 x 32 float32 for 3 x 24 x 32 uint8", "v2.ToDtype"]),
        ("def mine(image): return image[:, :4]", ["3 x 4 x 32 uint8"]),
        ("def mine(image): return image.numpy()", ["ndarray"]),
        ("def mine(image): pass", ["NoneType"]),
        ("def mine(image):\n    return image[7]", ["failed on 3 x 24 x 32 uint8: IndexError", "(mine.py, line 6)"]),
        ("def mine(image): raise SystemExit(0)", ["SystemExit"]),
        ("mine = 3", ["int", "cannot be called"]),
        ("class mine: pass", ["cannot be called"]),
        ("class mine:\n    def __init__(self, size): pass", ["without arguments", "size"]),
        ("def mine(image, target): return image", ["target"]),
        ("other = 3", ["has no 'mine'"]),
        ("seen = []\ndef mine(image):\n    seen.append(1)\n    return image // len(seen)", ["same draws", "resumed"]),
        ("draw = np.random.default_rng()\ndef mine(image): return image // draw.integers(1, 99)", ["same draws"]),
    ],
)
def test_what_is_refused_before_the_training(tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "mine.py").write_text(f"import random\nimport numpy as np\nimport torch\n\n{text}\n")
    with pytest.raises(UserError) as caught:
        PROCESSOR.check(config(f"{tmp_path}/mine.py:mine"), LABEL, torch.device("cpu"))
    for part in [*parts, "mine"]:
        assert part in str(caught.value)


def test_settings_that_do_not_go_with_it(code: Path) -> None:
    reference = f"{code}:plain"
    with pytest.raises(UserError, match=r"nvjpeg[\s\S]*augment\.transform"):
        PROCESSOR.check(config(reference, **{"data.decoder": "nvjpeg"}), LABEL, torch.device("cuda"))
    for wrong in ("mine.py", ":plain", "mine.py:", "mine.py:a b"):
        with pytest.raises(UserError, match=r"augment\.transform = .* is not FILE\.py:NAME"):
            config(wrong)
    assert config("none").augment.transform is None


def test_stored_views_depend_on_the_files_bytes(code: Path) -> None:
    settings = config(f"{code}:plain", **{"freeze.views": 2})
    before, again = (training_views(NumberSource(3), PROCESSOR, settings)[1][2] for _ in range(2))
    assert before == again
    code.write_text(f"{CODE}\n# changed\n")
    assert training_views(NumberSource(3), PROCESSOR, settings)[1][2] != before


def test_a_run_with_it(shapes: Path, code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The curve is that of the same images on two processes, and after a stop; another file is noticed."""
    options = ("--set", f"augment.transform={code}:Noise", "--augment", "none")
    train_here(shapes, tmp_path / "two", *options, epochs=2)
    train_here(shapes, tmp_path / "plain", "--augment", "none", epochs=2)
    train_on(2, shapes, tmp_path / "ranks", *options, epochs=2)
    curve = column(tmp_path / "two", "loss")
    assert column(tmp_path / "ranks", "loss") == pytest.approx(curve, rel=1e-4)
    assert curve != pytest.approx(column(tmp_path / "plain", "loss"), rel=1e-4)
    train_here(shapes, tmp_path / "one", *options, "--set", "schedule.name=constant")
    assert "has changed" not in capsys.readouterr().out
    code.write_text(f"{CODE}\n# changed\n")
    train_here(shapes, tmp_path / "one", *options, "--set", "schedule.name=constant", "--extend", epochs=2)
    assert f"{code} has changed since this run's last start" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_what_fails_at_some_image_is_named(shapes: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "mine.py").write_text("def mine(image):\n    return image if image.float().std() > 70 else None\n")
    options = ("--set", f"augment.transform={tmp_path}/mine.py:mine", "--workers", workers)
    with pytest.raises(UserError, match=r"train/\w+/\d+\.png: augment\.transform: .*mine\.py:mine returned a NoneType"):
        train_here(shapes, tmp_path / "run", *options)


def test_features_of_plain_images_alone_never_see_it(shapes: Path, code: Path, tmp_path: Path) -> None:
    options = ("--set", f"augment.transform={code}:plain", "--recipe", "linear_probe")
    with pytest.raises(UserError, match=r"augment\.transform[\s\S]*freeze\.views"):
        train_here(shapes, tmp_path / "run", *options)
    train_here(shapes, tmp_path / "views", *options, "--set", "freeze.views=2")
