"""A model of images of another number of channels than the three that it was pretrained with."""

from ddp_ft.contracts import Processor
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.errors import UserError
from ddp_ft.models.libraries.base import State

_PRETRAINED = 3


def with_channels(processor: Processor, channels: int | None) -> Processor:
    """Return the processor for images of so many channels; None: as it is. UserError for one of another kind."""
    if channels is None:
        return processor
    if not isinstance(processor, ImageProcessor):
        raise UserError(f"data.channels is for models of images, and this one takes '{processor.kind}'.")
    return processor.of_channels(channels)


def with_input_of(state: State, target: State) -> tuple[State, tuple[str, ...]]:
    """Return the state with the convolutions of its input adapted to the channels of `target`, and a note of it.

    As timm does: the weights of three channels are summed for one, and repeated and scaled for others, so that the
    layer's outputs keep their size. Only convolutions over images differ in their second dimension alone.
    """
    names = [name for name, each in state.items() if name in target and _is_input(each.shape, target[name].shape)]
    if not names:
        return state, ()
    from ddp_ft.models.libraries.bare_timm import timm  # which takes 1.5 s

    adapted = {name: timm.models.adapt_input_conv(target[name].shape[1], state[name]) for name in names}
    channels = target[names[0]].shape[1]
    return {**state, **adapted}, (f"its input is adapted to {channels} channel{'s'[: channels > 1]} ({names[0]})",)


def _is_input(own: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    is_convolution = len(own) == len(wanted) == 4 and own[0] == wanted[0] and own[2:] == wanted[2:]
    return is_convolution and own[1] == _PRETRAINED != wanted[1]
