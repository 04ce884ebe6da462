"""What a model library must offer."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from ddp_ft.contracts import Batch, Processor

State = dict[str, Tensor]


def call_with_images(module: nn.Module, batch: Batch) -> Any:
    """The call of a network that takes images alone (float, B x C x H x W)."""
    return module(batch["image"])


class Library(Protocol):
    """The functions of a module of `LIBRARIES`. `name` is the model's name without the library's own.

    DROPOUT and DROP_PATH are what the create functions may call the rate of the dropout before the classifier and
    that of stochastic depth; not all models take them. ARGUMENTS names what `arguments` gives besides `num_classes`:
    numbers, or lists of them. A model.json with others is refused, since it may be somebody else's.
    """

    ARGUMENTS: tuple[str, ...]
    DROPOUT: tuple[str, ...]
    DROP_PATH: tuple[str, ...]

    def names(self) -> list[str]:
        """All models, with and without the tags of their weights."""

    def knows(self, name: str) -> bool:
        """Whether there is such a model, with such a tag if `name` has one."""

    def spec_name(self, name: str) -> str:
        """The name that the library's own create function takes."""

    def arguments(self, name: str, outputs: int, image_size: int | None) -> dict[str, Any]:
        """The arguments of the create function, as JSON values; `num_classes` is always among them."""

    def create(self, spec_name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """The module, with random weights."""

    def processor(self, name: str, module: nn.Module, image_size: int | None, weights: str) -> Processor:
        """What the model wants done to its input when it starts from `weights` (as of `load_weights`)."""

    def call(self, module: nn.Module, batch: Batch) -> Any:
        """The outputs of a module of the library for a prepared batch, as tensors."""

    def pretrained(self, name: str) -> State:
        """The library's weights for `name`, from its cache or the network; UserError if there are none."""

    def input_sizes(self, name: str) -> dict[str, list[int]]:
        """[height, width] of the images for each tag of a model without a tag that has weights; "" is the default."""

    def parameters(self, name: str, may_build: bool) -> int | None:
        """How many parameters the model has, with the head of its weights; None if it would have to be built for it."""

    def cache_folder(self) -> str:
        """Where `pretrained` keeps what it downloads."""

    def adapt(self, module: nn.Module, state: State) -> State:
        """`state` in the names and table sizes of `module`, as far as the library knows how."""
