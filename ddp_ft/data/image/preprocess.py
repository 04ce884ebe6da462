"""What a vision model expects of its images."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Preprocess:
    """What a model expects of its images. `size` is (height, width); mean and std are for values in 0..1.

    `decoder` says whether a JPEG may "shrink" while it is decoded, as far as the size allows, or is decoded in "full".
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    decoder: str = "shrink"

    def to_mapping(self) -> dict[str, Any]:
        """As JSON values, for model.json."""
        return {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(self).items()}

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> "Preprocess":
        """The inverse of `to_mapping`."""
        size = values["size"]
        return Preprocess(
            (int(size[0]), int(size[1])), tuple(values["mean"]), tuple(values["std"]),
            values["interpolation"], float(values["crop_pct"]), values["crop_mode"],
            values.get("decoder", "shrink"),
        )  # fmt: skip
