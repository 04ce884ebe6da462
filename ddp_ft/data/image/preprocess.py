"""What a vision model expects of its images."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Preprocess:
    """What a model expects of its images. `size` is (height, width); mean and std are for values in 0..1.

    `decoder` says whether a JPEG may "shrink" while it is decoded, as far as the size allows, or is decoded in "full".
    `value_range` are the values of black and white in images of more than 8 bits; None: those of each image's format.
    mean and std have a value for each of the `channels`, or one for all of them.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    decoder: str = "shrink"
    value_range: tuple[float, float] | None = None
    channels: int = 3

    def to_mapping(self) -> dict[str, Any]:
        """As JSON values, for model.json."""
        usual = {"value_range": None, "channels": 3}  # files of earlier versions lack both
        known = {name: each for name, each in asdict(self).items() if name not in usual or each != usual[name]}
        return {name: list(each) if isinstance(each, tuple) else each for name, each in known.items()}

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> "Preprocess":
        """The inverse of `to_mapping`."""
        size, ends = values["size"], values.get("value_range")
        return Preprocess(
            (int(size[0]), int(size[1])), tuple(values["mean"]), tuple(values["std"]),
            values["interpolation"], float(values["crop_pct"]), values["crop_mode"],
            values.get("decoder", "shrink"), None if ends is None else (float(ends[0]), float(ends[1])),
            int(values.get("channels", 3)),
        )  # fmt: skip
