"""The interface of a model library."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ddp_ft.contracts import SAMPLE, Batch, Processor

State = dict[str, Tensor]


# How timm's models begin that are described elsewhere, in both of its spellings.
_SOURCES = ("hf-hub:", "hf_hub:", "local-dir:", "local_dir:")


def is_source(name: str) -> bool:
    """Whether the name is that of a model on a hub or in a folder: hf-hub:OWNER/NAME, local-dir:FOLDER."""
    return name.startswith(_SOURCES)


def call_with_images(module: nn.Module, batch: Batch) -> Any:
    """Call a network that takes only images (float, B x C x H x W); return what it returns, which `OutputsCall` looks
    through for its outputs."""
    return module(batch["image"])


def numbers_alone(name: str, value: Any) -> bool:
    """No others than numbers."""
    return False


def no_files(spec: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, bytes]:
    """No files for other programs: they would be the library's own weights, in model.safetensors."""
    return {}


class Library(Protocol):
    """The functions of a module of `LIBRARIES`. `name` is the model's name without the library's.

    DROPOUT, DROP_PATH, CHANNELS: candidate keyword names of the create function for classifier dropout, stochastic
    depth and the number of an image's channels.
    ARGUMENTS: names of what `arguments` returns besides `num_classes`: numbers, or lists of them. A model.json with
    others is refused, unless they are what `is_argument` knows, since it may be from somebody else.
    """

    ARGUMENTS: tuple[str, ...]
    DROPOUT: tuple[str, ...]
    DROP_PATH: tuple[str, ...]
    CHANNELS: tuple[str, ...]

    def names(self) -> list[str]:
        """Return all models, with and without the tags of their weights."""

    def knows(self, name: str) -> bool:
        """Whether the model exists, with that tag if `name` has one."""

    def spec_name(self, name: str, unit: str = SAMPLE) -> str:
        """Return the name that the library's create function takes, for a model whose outputs are of that unit."""

    def arguments(self, name: str, outputs: int, image_size: int | None) -> dict[str, Any]:
        """Return the arguments of the create function, as JSON values; `num_classes` is always one of them."""

    def create(self, spec_name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Return the module, with random weights."""

    def processor(self, name: str, module: nn.Module, image_size: int | None, weights: str) -> Processor:
        """Return the processor of the model's input when it starts from `weights` (those of `load_weights`)."""

    def call(self, module: nn.Module, batch: Batch) -> Any:
        """Return the outputs of the library's module for a prepared batch, as tensors."""

    def pretrained(self, name: str) -> State | Path:
        """Return the library's weights for `name`, or the file that has them, from its cache or the network; UserError
        if there are none."""

    def input_sizes(self, name: str) -> dict[str, list[int]]:
        """Return [height, width] for each tag with weights of a model without a tag; "" is the default."""

    def parameters(self, name: str, may_build: bool) -> int | None:
        """Return the number of parameters, with the head of its weights; None if only building the model would tell."""

    def is_argument(self, name: str, value: Any) -> bool:
        """Whether `create` takes that argument besides numbers; the value may be from somebody else's model.json."""

    def files(self, spec: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, bytes]:
        """Return what a model folder holds for programs of the library, by name; `names` are those of the outputs."""

    def cache_folder(self) -> str:
        """Return the folder in which `pretrained` keeps its downloads."""

    def adapt(self, module: nn.Module, state: State) -> State:
        """Return `state` with the names and table sizes of `module`, as far as the library can convert it."""
