"""A net that counts the images its backbone sees in evaluation mode, also in processes that it is forked into."""

import os
import resource
import signal
from pathlib import Path

from torch import Tensor, nn

from tests.support import nets

THIS_FILE = __file__
COUNTS, LIMIT = "DDP_FT_TEST_COUNTS", "DDP_FT_TEST_LIMIT"


class _Counts(nn.Module):
    """Notes each forward pass by a byte an image; kills its process before more than
    $DDP_FT_TEST_LIMIT of them were seen."""

    def forward(self, images: Tensor) -> Tensor:
        folder = os.environ.get(COUNTS)
        if folder and not self.training and not images.is_meta and images.any():  # black ones are trials of the net
            with (Path(folder) / str(os.getpid())).open("ab") as stream:
                seen = sum(file.stat().st_size for file in Path(folder).iterdir())
                if seen + len(images) > int(os.environ.get(LIMIT, "1000000")):
                    os.kill(os.getpid(), signal.SIGKILL)
                stream.write(b"." * len(images))
        return images


def counting(num_classes: int = 3) -> nn.Module:
    """`nets.plain` behind it, so its head is "1.6"."""
    return nn.Sequential(_Counts(), nets.plain(num_classes))


def images_seen(folder: Path) -> int:
    """How many images backbones have seen since the folder was made, in all processes; and begin anew."""
    files = list(folder.iterdir())
    total = sum(file.stat().st_size for file in files)
    for file in files:
        file.unlink()
    return total


class _Squeezes(nn.Module):
    """From its first images on no file of the process can grow beyond one chunk of features."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training and not images.is_meta and images.any():
            _limit_files(4096)
        return images


class _Loosens(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            _limit_files(resource.RLIM_INFINITY)
        return super().forward(features)


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def on_a_full_disk(num_classes: int = 3) -> nn.Module:
    """The same weights, on a disk that is full while features are computed."""
    layers = nets.plain(num_classes)
    assert isinstance(layers, nn.Sequential)
    layers[6] = _Loosens(16, num_classes)
    return nn.Sequential(_Squeezes(), layers)
