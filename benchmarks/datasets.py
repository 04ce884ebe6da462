"""Small draws from real, labelled sets of images, written as class folders.

A draw is a stratified random choice of images for train/, val/ and test/, disjoint, made anew for each seed.
"""

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from launch.demo_assets import package_folder, read_labels, written_aside

PARTS = ("train", "val", "test")
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
STAMPS = Path("/usr/share/tuxpaint/stamps")  # Debian's package tuxpaint-stamps-default
EMOJI = Path(".cache/emoji/package")  # what `npm pack emoji-datasource-google` wrote, unpacked
FASHION_CLASSES = (
    "tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot",
)  # fmt: skip
# Photos of 300 x 300 are stored at this side: a random crop of them is still larger than what a model sees here,
# and decoding no longer takes a quarter of a run.
STORED_SIDE = 128
# Fewer pictures of a group of stamps than these are no class.
FEWEST_STAMPS = 30
DIGIT_SIDE = 32


@dataclass(frozen=True)
class Pool:
    """Labelled images to draw from: `labels` has one class number an image, `read` gives image number k."""

    classes: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[int], Image.Image]


@dataclass(frozen=True)
class DataSet:
    """Where a set of so many images comes from, and how it is trained on: `side` in pixels, `settings` for every method
    alike."""

    title: str
    images: int
    classes: int
    side: int
    is_here: Callable[[], bool]
    needs: str
    open: Callable[[], Pool]
    settings: Mapping[str, float] = field(default_factory=dict)


def open_elpv() -> Pool:
    """2,223 photos of solar cells: mono- or polycrystalline, intact or defect, by the demo's choice of labels."""
    by_class = read_labels(package_folder("elpv_dataset"))
    files = [file for found in by_class.values() for file in found]
    labels = np.repeat(np.arange(len(by_class)), [len(found) for found in by_class.values()])

    def read(index: int) -> Image.Image:
        return Image.open(files[index]).resize((STORED_SIDE, STORED_SIDE), Image.Resampling.LANCZOS)

    return Pool(tuple(by_class), labels, read)


def open_digits() -> Pool:
    """scikit-learn's 1,797 handwritten digits of 8 x 8, enlarged."""
    from sklearn.datasets import load_digits

    data = load_digits()

    def read(index: int) -> Image.Image:
        grey = Image.fromarray((data.images[index] * (255 / 16)).astype(np.uint8))
        return grey.resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BILINEAR)

    return Pool(tuple(map(str, range(10))), data.target, read)


def open_fashion() -> Pool:
    """Fashion-MNIST's 60,000 training images of 28 x 28; its 10,000 test images are not touched."""
    images = read_idx(FASHION / "train-images-idx3-ubyte.gz")
    labels = read_idx(FASHION / "train-labels-idx1-ubyte.gz")
    return Pool(FASHION_CLASSES, labels, lambda index: Image.fromarray(images[index]))


def open_emoji() -> Pool:
    """1,906 emoji of Google's font, 64 x 64 on white, in nine categories."""
    listed = json.loads((EMOJI / "emoji.json").read_text(encoding="utf-8"))
    files = {EMOJI / "img/google/64" / each["image"]: each["category"] for each in listed}
    known = {file: category for file, category in files.items() if category != "Component" and file.exists()}
    classes = sorted(set(known.values()))
    names = tuple(name.split()[0].lower() for name in classes)
    paths, labels = list(known), np.array([classes.index(category) for category in known.values()])
    return Pool(names, labels, lambda index: _on_white(Image.open(paths[index])))


def open_stamps() -> Pool:
    """703 drawings and photos of Tux Paint's stamps, on white: animals, food, symbols and so on."""
    groups: dict[str, list[Path]] = {}
    for file in sorted(STAMPS.rglob("*.png")):
        if not file.stem.endswith(("_mirror", "_flip")):
            groups.setdefault(file.relative_to(STAMPS).parts[0], []).append(file)
    classes = sorted(name for name, files in groups.items() if len(files) >= FEWEST_STAMPS)
    paths = [file for name in classes for file in groups[name]]
    labels = np.repeat(np.arange(len(classes)), [len(groups[name]) for name in classes])
    return Pool(tuple(classes), labels, lambda index: _on_white(Image.open(paths[index])))


def _on_white(image: Image.Image) -> Image.Image:
    """The picture in the middle of a white square of at most STORED_SIDE pixels."""
    picture = image.convert("RGBA")
    picture.thumbnail((STORED_SIDE, STORED_SIDE))
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB")


def read_idx(file: Path) -> np.ndarray:
    """A gzipped IDX file of bytes as a uint8 array: two zeros, 8 for bytes, rank, then the sides as 4-byte numbers."""
    content = gzip.decompress(file.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{file} is no IDX file of bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, offset=4)
    pixels: np.ndarray = np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape.tolist())
    return pixels


DATA_SETS = {
    "elpv": DataSet(
        "ELPV solar cells, 4 classes",
        2223,
        4,
        96,
        lambda: importlib.util.find_spec("elpv_dataset") is not None,
        "the package elpv-dataset",
        open_elpv,
    ),
    "digits": DataSet(
        "scikit-learn digits, 10 classes",
        1797,
        10,
        64,
        lambda: importlib.util.find_spec("sklearn") is not None,
        "the package scikit-learn",
        open_digits,
        {"augment.flip": 0.0},  # a mirrored digit is no digit
    ),
    "fashion": DataSet(
        "Fashion-MNIST, 10 classes",
        60_000,
        10,
        64,
        FASHION.is_dir,
        "Debian's package dataset-fashion-mnist",
        open_fashion,
    ),
    "emoji": DataSet(
        "Emoji, 9 categories",
        1906,
        9,
        64,
        EMOJI.is_dir,
        f"npm's package emoji-datasource-google, unpacked in {EMOJI}",
        open_emoji,
    ),
    "stamps": DataSet(
        "Tux Paint's stamps, 8 groups",
        703,
        8,
        64,
        STAMPS.is_dir,
        "Debian's package tuxpaint-stamps-default",
        open_stamps,
    ),
}


def draw(labels: np.ndarray, counts: Sequence[int], seed: int) -> list[list[int]]:
    """Indices for each part, `counts` of them in all, disjoint, every class in proportion to the pool.

    A hash of (seed, index) decides which, so they do not depend on a library's generator. Raises ValueError if the
    pool is too small.
    """
    if sum(counts) > len(labels):
        raise ValueError(f"{sum(counts)} images are wanted, {len(labels)} are there")
    sizes = np.bincount(labels)
    shares = [apportion(count, sizes) for count in counts]
    parts: list[list[int]] = [[] for _ in counts]
    for label, size in enumerate(sizes.tolist()):
        ranked = sorted(np.flatnonzero(labels == label).tolist(), key=lambda index: _hash(seed, index))
        ends = np.cumsum([share[label] for share in shares]).tolist()
        if ends[-1] > size:  # rounding up in every part
            raise ValueError(f"class {label} has {size} images, {ends[-1]} are wanted")
        for part, begin, end in zip(parts, [0, *ends], ends, strict=False):
            part += ranked[begin:end]
    return [sorted(part) for part in parts]


def apportion(count: int, sizes: np.ndarray) -> list[int]:
    """`count` divided in proportion to `sizes`, by largest remainders."""
    exact = count * sizes / sizes.sum()
    shares = np.floor(exact).astype(int)
    largest = np.argsort(shares - exact, kind="stable")[: count - shares.sum()]
    shares[largest] += 1
    return [int(share) for share in shares]


def _hash(seed: int, index: int) -> bytes:
    return hashlib.sha256(f"{seed},{index}".encode()).digest()


def write_draw(pool: Pool, counts: Sequence[int], seed: int, folder: Path) -> None:
    """The folder, complete or absent: train/CLASS, val/CLASS and test/CLASS with PNG files; left alone if there."""
    if folder.exists():
        return
    with written_aside(folder) as target:
        for part, indices in zip(PARTS, draw(pool.labels, counts, seed), strict=True):
            for index in indices:
                file = target / part / pool.classes[pool.labels[index]] / f"{index:05d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pool.read(index).save(file)
