"""nvJPEG path: the loader passes JPEG bytes with crop and turn; the GPU decodes, crops and resizes."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F

from ddp_ft.config.schema import AugmentConfig, RunConfig
from ddp_ft.contracts import Batch
from ddp_ft.data.image.augment import distortions
from ddp_ft.data.image.channels import with_channels
from ddp_ft.data.image.decode import JpegFile
from ddp_ft.data.image.geometry import Turn, draw_turn
from ddp_ft.data.image.jpeg import decode_jpeg as decode_here
from ddp_ft.data.image.jpeg import least_shrink, read_header
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import draw_crop, interpolation_of, train_transform
from ddp_ft.data.image.undecoded import Image, as_tensor, size_of
from ddp_ft.errors import UserError

# A sample's encoded bytes; their number, 0 if it is decoded already; the crop, as top, left, height and width; and
# how it is flipped and turned, as in `Turn`.
JPEG, LENGTH, CUT, TURN = "jpeg", "jpeg_length", "jpeg_cut", "jpeg_turn"
NVJPEG = "nvjpeg"  # the value of data.decoder
_NOTHING = torch.empty(0, dtype=torch.uint8)


class EncodedTransform:
    """`train_transform` without distortions, draw for draw, but a JPEG is passed on undecoded.

    Returns "image" (uint8, C x the model's size; zeros for a JPEG) and the tensors above. What only Pillow reads, what
    EXIF turns, and what is very large is decoded here.
    """

    def __init__(self, preprocess: Preprocess, augment: AugmentConfig) -> None:
        self.decoded = train_transform(preprocess, augment)
        self.augment, self.channels = augment, preprocess.channels
        self.blank = torch.zeros(preprocess.channels, *preprocess.size, dtype=torch.uint8)

    def __call__(self, image: Image) -> Batch:
        """The sample's tensors."""
        if not isinstance(image, JpegFile) or image.header.orientation != 1 or least_shrink(image.header, 1) > 1:
            return _sample(self.decoded(image), _NOTHING, (0, 0, 0, 0), Turn(False, False, 0))
        box = draw_crop(*size_of(image.asked(self.channels, None)), self.augment.crop_min)
        data = torch.frombuffer(bytearray(image.data), dtype=torch.uint8)
        return _sample(self.blank, data, box, draw_turn(self.augment))


def _sample(image: Tensor, data: Tensor, box: Sequence[int], turn: Turn) -> Batch:
    whole = {CUT: torch.tensor(box), TURN: torch.tensor([int(each) for each in turn])}
    return {"image": image, JPEG: data, LENGTH: torch.tensor(len(data)), **whole}


def check_nvjpeg(config: RunConfig, preprocess: Preprocess, device: torch.device) -> None:
    """Raise UserError for data.decoder = nvjpeg without a CUDA device, or with distortions."""
    if config.data.decoder != NVJPEG:
        return
    if device.type != "cuda":
        message = f"data.decoder = nvjpeg decodes on a CUDA device, and this run computes on the {device.type}."
        raise UserError(message, "Leave data.decoder out.")
    if config.augment.transform is not None:
        message = "data.decoder = nvjpeg decodes on the GPU, and augment.transform is called before, in the loader."
        raise UserError(message, "Leave one of them out.")
    if distortions(preprocess, config.augment) is not None:
        message = (
            "data.decoder = nvjpeg decodes on the GPU, where images are only cropped, flipped and turned by right "
        )
        hint = "Leave data.decoder out; or use --augment light or none, and of `augment` not policy, color_jitter, "
        hint += "grey, blur, erasing, rotation, translation and scale."
        raise UserError(f"{message}angles.", hint)


def decoded_on(device: torch.device, batch: Batch, preprocess: Preprocess) -> Batch:
    """The batch with all images in "image", on the device (uint8, B x C x the model's size), and nothing encoded.

    Waits for nvJPEG. On CUDA the current stream must have nothing left to do, since nvJPEG would not wait for it.
    UserError for an image that nothing decodes.
    """
    rest = {name: tensor for name, tensor in batch.items() if name not in (JPEG, LENGTH, CUT, TURN)}
    rows = batch[LENGTH].nonzero().flatten().tolist()
    files = [batch[JPEG][row, : batch[LENGTH][row]] for row in rows]
    images = rest["image"].to(device, copy=True)
    pairs = zip(files, batch["index"][rows].tolist(), strict=True)
    decoded = _decode(files, device) or [_decode_alone(file, device, index) for file, index in pairs]
    size, interpolation = list(preprocess.size), interpolation_of(preprocess)
    for row, pixels in zip(rows, decoded, strict=True):
        flip, vertical, quarters = batch[TURN][row].tolist()
        turn = Turn(bool(flip), bool(vertical), quarters)
        box, sides = batch[CUT][row].tolist(), turn.size_before(size)
        pixels = with_channels(pixels, preprocess.channels)
        images[row] = turn(F.resized_crop_image(pixels, *box, sides, interpolation, antialias=True))
    return {**rest, "image": images}


def _decode(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """All of them at once, as 3 x H x W; none if one cannot be decoded. By nvJPEG on CUDA.

    The only call of torchvision's decoders, which are to move to torchcodec.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)
        try:
            return list(decode_jpeg(files, ImageReadMode.RGB, device)) if files else []
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return []


def _decode_alone(file: Tensor, device: torch.device, index: int) -> Tensor:
    """One file of a batch in which the GPU cannot decode all: by the GPU if it can, else on the CPU."""
    if found := _decode([file], device):
        return found[0]
    data = file.numpy().tobytes()
    try:
        header = read_header(data)
        if header is None:
            raise ValueError("no JPEG after all")
        return as_tensor(decode_here(data, header, 1)).to(device)
    except (ValueError, OSError) as error:
        which = f"Image {index} of the training set (counted from 0, in the order of split.json)"
        hint = "Leave data.decoder=nvjpeg out: then damaged images are named, and data.on_error=skip replaces them."
        raise UserError(f"{which} cannot be decoded: {error}.", hint) from None
