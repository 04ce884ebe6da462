"""The names of an adapter's tensors, which are those of peft."""

A, B, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"
_PARTS = frozenset((A, B, MAGNITUDE))


def is_adapter(name: str) -> bool:
    """Whether a parameter or tensor of that name belongs to an adapter."""
    return not _PARTS.isdisjoint(name.split("."))


def layer_of(name: str) -> str:
    """The path of the layer that an adapter's tensor belongs to."""
    parts = name.split(".")
    return ".".join(parts[: next(place for place, part in enumerate(parts) if part in _PARTS)])
