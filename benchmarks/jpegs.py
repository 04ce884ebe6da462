"""JPEG files like ImageNet's (500 x 375, about 71 kB), in class folders: `train/CLASS/*.jpg` and `val/CLASS/*.jpg`.

They are random crops, flips and brightnesses of the photos that scikit-image and scikit-learn ship. Where neither is
installed, they are generated: coloured noise whose spectrum falls as a photo's does. The pixels follow from the number
of the image alone.
"""

import importlib.util
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ddp_ft.distributed.environment import usable_cores
from launch.demo_assets import written_aside

# The commonest size of ImageNet's images, and about what such a file takes there.
SIZE = (500, 375)
BYTES = 71_000
CLASSES = 10
PACKAGES = {"skimage": "data", "sklearn": "datasets/images"}
# What is large and a photo. Files that the packages would have to download are not there and are not missed.
PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg",
    "china.jpg", "flower.jpg",
)  # fmt: skip
QUALITIES = (60, 70, 75, 80, 85, 90, 92, 95, 98)
SAMPLES = 24  # to choose the quality by


@dataclass(frozen=True)
class ImageSet:
    """How many different images there are, and how often each is in train/ as a file of its own (a hard link).

    More copies make an epoch longer without more work at the beginning.
    """

    train: int = 1280
    val: int = 320
    copies: int = 1
    size: tuple[int, int] = SIZE
    size_in_bytes: int = BYTES

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.train}x{self.copies}-{self.val}-{self.size[0]}x{self.size[1]}"


def find_photos() -> list[Path]:
    """The photos on this machine, sorted; the packages are not imported."""
    specs = {name: importlib.util.find_spec(name) for name in PACKAGES}
    folders = [Path(spec.origin).parent / PACKAGES[name] for name, spec in specs.items() if spec and spec.origin]
    return sorted(file for folder in folders for file in folder.glob("*") if file.name in PHOTOS)


@cache
def _pixels(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def make_image(number: int, size: tuple[int, int], photos: tuple[Path, ...]) -> Image.Image:
    """Image `number`, of `size` = (width, height): a part of a photo, or generated if there are none."""
    generator = np.random.default_rng([71, number])
    image = _part(_pixels(photos[number % len(photos)]), size, generator) if photos else _noise(size, generator)
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    factor = generator.uniform(0.7, 1.3)
    return image.point([min(255, round(value * factor)) for value in range(256)] * 3)


def _part(photo: Image.Image, size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    largest = min(photo.width / size[0], photo.height / size[1])
    scale = largest * generator.uniform(0.6, 1.0)
    width, height = size[0] * scale, size[1] * scale
    left, top = generator.uniform(0, photo.width - width), generator.uniform(0, photo.height - height)
    return photo.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height))


def _noise(size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """Noise whose amplitude falls as one over the frequency, as in natural scenes (Field 1987), in each colour."""
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(generator.standard_normal((3, height, width))) / frequency
    waves = np.fft.irfft2(spectrum, s=(height, width))
    shared = waves.mean(0, keepdims=True)  # colours of a photo mostly go together
    mixed = shared + 0.3 * (waves - shared)
    values = 127 + 55 * (mixed - mixed.mean()) / mixed.std()
    return Image.fromarray(np.ascontiguousarray(values.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)))


def encode(image: Image.Image, quality: int) -> bytes:
    """The image as a JPEG file."""
    stream = BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def choose_quality(size: tuple[int, int], photos: tuple[Path, ...], size_in_bytes: int) -> int:
    """The quality whose files are nearest to that size in the mean."""
    images = [make_image(number, size, photos) for number in range(SAMPLES)]
    means = {quality: np.mean([len(encode(image, quality)) for image in images]) for quality in QUALITIES}
    return min(QUALITIES, key=lambda quality: abs(means[quality] - size_in_bytes))


def _write(number: int, folder: Path, images: ImageSet, photos: tuple[Path, ...], quality: int) -> int:
    content = encode(make_image(number, images.size, photos), quality)
    part = "train" if number < images.train else "val"
    place = folder / part / f"class_{number % CLASSES}"
    first = place / f"{number:05d}.jpg"
    first.write_bytes(content)
    for copy in range(1, images.copies if part == "train" else 1):
        _link(first, place / f"{number:05d}_{copy}.jpg")
    return len(content)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def write_jpegs(root: Path, images: ImageSet) -> Path:
    """The set's folder below `root`, complete or absent; left alone if it is there. `about.json` says what it is."""
    target = root / images.name
    if not target.exists():
        with written_aside(target) as folder:
            _write_set(folder, images)
    return target


def _write_set(folder: Path, images: ImageSet) -> None:
    for part in ("train", "val"):
        for label in range(CLASSES):
            (folder / part / f"class_{label}").mkdir(parents=True)
    photos = tuple(find_photos())
    quality = choose_quality(images.size, photos, images.size_in_bytes)
    work = partial(_write, folder=folder, images=images, photos=photos, quality=quality)
    sizes = list(_on_all_cores(work, images.train + images.val))
    origin = f"{len(photos)} photos of scikit-image and scikit-learn" if photos else "generated (noise as in photos)"
    facts = {**asdict(images), "origin": origin, "quality": quality, "mean_bytes": round(sum(sizes) / len(sizes))}
    (folder / "about.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _on_all_cores(work: "partial[int]", count: int) -> Iterator[int]:
    if count < 200:  # a pool takes longer to start
        yield from map(work, range(count))
        return
    with multiprocessing.get_context("forkserver").Pool(usable_cores()) as pool:
        yield from pool.imap(work, range(count), chunksize=16)


def describe(folder: Path) -> str:
    """One line about a set that was written."""
    facts = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    width, height = facts["size"]
    times = f" x {facts['copies']}" if facts["copies"] > 1 else ""
    return (
        f"{facts['train']}{times} JPEG files of {width} x {height} in {CLASSES} classes, "
        f"{facts['mean_bytes'] / 1000:.0f} kB in the mean (quality {facts['quality']}), {facts['origin']}"
    )
