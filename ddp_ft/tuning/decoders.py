"""What a decoder of JPEGs gains in speed, and how it changes the images that the model sees."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ddp_ft.config.schema import AugmentConfig
from ddp_ft.contracts import Address, BadSample, Processor, Source
from ddp_ft.data.image.decode import JpegFile, decode_by_pillow
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.data.image.transforms import eval_transform, train_transform
from ddp_ft.data.image.undecoded import Image
from ddp_ft.data.open_sample import open_sample
from ddp_ft.data.rng import drawing_from
from ddp_ft.features.dataset import one_thread

# The decoders of `Preprocess`, and what they are compared with: Pillow, in full, as other tools decode.
SHRINK, FULL, PILLOW = "shrink", "full", "pillow"


def decoder_of(processor: Processor) -> str:
    """Return the decoder that the processor has chosen; "auto" if it has no choice."""
    return processor.preprocess.decoder if isinstance(processor, ImageProcessor) else "auto"


def find_jpegs(source: Source, addresses: Iterable[Address]) -> list[Address]:
    """Return those of the samples that are intact JPEGs; other formats have only one decoder."""
    return [address for address in addresses if _is_sound_jpeg(source, address)]


def _is_sound_jpeg(source: Source, address: Address) -> bool:
    try:
        image = open_sample(source, address.index)["image"]
        return isinstance(image, JpegFile) and image.pixels(8) is not None
    except BadSample:  # training will find and report it
        return False


@dataclass(frozen=True)
class Decoding:
    """Takes these JPEGs from the file to the model's input, by any decoder, in one thread."""

    source: Source
    addresses: Sequence[Address]
    preprocess: Preprocess
    augment: AugmentConfig
    seed: int

    def train(self, decoder: str) -> None:
        """Read, decode and augment all of them, with the draws of training."""
        transform = train_transform(self._by(decoder), self.augment)
        with one_thread():
            for address in self.addresses:
                with drawing_from(self.seed, address.epoch, address.position):
                    transform(self._open(address, decoder))

    def difference(self, decoder: str) -> int:
        """Return the largest difference, in grey levels of 0 to 255, of images for evaluation from those by Pillow."""
        ours, pillows = eval_transform(self._by(decoder)), eval_transform(self._by(FULL))
        worst = 0
        for address in self.addresses:
            image, reference = ours(self._open(address, decoder)), pillows(self._open(address, PILLOW))
            worst = max(worst, int((image.short() - reference.short()).abs().max()))
        return worst

    def _by(self, decoder: str) -> Preprocess:
        return replace(self.preprocess, decoder=FULL if decoder == PILLOW else decoder)

    def _open(self, address: Address, decoder: str) -> Image:
        image: Image = open_sample(self.source, address.index)["image"]
        return decode_by_pillow(image.path) if decoder == PILLOW and isinstance(image, JpegFile) else image
