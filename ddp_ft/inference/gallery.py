"""The images of a prediction with the answers below them, in a folder to look through."""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.thread import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_ft.contracts import BadSample
from ddp_ft.data.image.captioned import Line, captioned_jpeg
from ddp_ft.data.image.fonts import font_files
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.data.image.undecoded import asked
from ddp_ft.data.open_sample import open_sample
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError, printable
from ddp_ft.files import write_bytes
from ddp_ft.inference.predict_request import Request, Rows
from ddp_ft.inference.table_writers import Outcome
from ddp_ft.run_folder.output_path import check_output_folder

# Lines below an image, and bytes of its name that stay in the name of the file that is written.
MOST_LINES, _MOST_BYTES = 8, 100
_ODD = re.compile(r"[^\w.,=+() -]")


@dataclass(frozen=True)
class Gallery:
    """The folder of --show; `fonts` are files that have the letters of the names."""

    folder: Path
    rows: Rows
    processor: ImageProcessor
    fonts: tuple[str, ...]

    def file(self, index: int) -> Path:
        """Where the image of that row is drawn: numbered as the rows, so no two have the same name."""
        stem = _ODD.sub("_", Path(self.rows.source.name(index)).stem)
        short = stem.encode("utf-8", "replace")[:_MOST_BYTES].decode("utf-8", "ignore")
        return self.folder / f"{index + 1:0{len(str(len(self.rows)))}}_{short}.jpg"

    def has_all_but(self, errors: int, number: int) -> bool:
        """Whether all images of that chunk are there, but for those that have an error instead."""
        indices = self.rows.indices(number)
        return sum(self.file(index).exists() for index in indices) >= len(indices) - errors

    def draw_in(self, pool: ThreadPoolExecutor, number: int, outcomes: Sequence[Outcome]) -> list[Future[None]]:
        """Begin to draw the chunk's images."""
        answers = zip(self.rows.indices(number), outcomes, strict=True)
        return [pool.submit(self._draw, index, each) for index, each in answers if not isinstance(each, str)]

    def _draw(self, index: int, answer: Mapping[str, Any]) -> None:
        with suppress(BadSample):  # it was there a moment ago, and its row says what was seen
            preprocess = self.processor.preprocess
            image = open_sample(self.rows.source, index)["image"]
            seen = asked(image, preprocess.channels, preprocess.value_range)
            content = captioned_jpeg(seen, lines_of(answer, self.rows.table.top_k), self.fonts)
            try:
                write_bytes(self.file(index), content, durable=False)
            except OSError as error:
                raise UserError(f"--show {self.folder} cannot be written to: {error.strerror}.") from None


def open_gallery(request: Request, rows: Rows, world: World, resumes: bool = False) -> Gallery | None:
    """The gallery that is asked for, if one is; its folder is made.

    UserError if that is not empty, unless this start `resumes` an interrupted one; if it is among the inputs, or they
    are in it; and for a model of something else than images.
    """
    if (folder := request.show) is None:
        return None
    processor = rows.members[0].processor
    if not isinstance(processor, ImageProcessor):
        raise UserError(f"--show is for images; the model is for '{processor.kind}'.", "Leave it out.")
    world.from_main(lambda: _prepare(folder, rows, request.inputs, resumes))
    folder.mkdir(parents=True, exist_ok=True)  # another node may not see that of rank 0
    return Gallery(folder, rows, processor, tuple(font_files(rows.members[0].names)))


def _prepare(folder: Path, rows: Rows, inputs: Sequence[str], resumes: bool) -> None:
    """Rank 0: make the folder."""
    check_output_folder(folder, "--show")
    _check_apart(folder, rows, inputs)
    with suppress(FileNotFoundError):
        if next(folder.iterdir(), None) and not resumes:
            hint = "Choose a new folder, or remove that one: images of another prediction would be among these."
            raise UserError(f"--show {folder} is not empty.", hint)
    folder.mkdir(parents=True, exist_ok=True)


def _check_apart(folder: Path, rows: Rows, inputs: Sequence[str]) -> None:
    """UserError if images would be written over others that are read, or be read by the next prediction."""
    place, hint = folder.resolve(), "Choose a folder that holds no input and lies in none."
    for given in inputs:
        if Path(given).is_dir() and place.is_relative_to(Path(given).resolve()):
            raise UserError(f"--show {folder} lies in {printable(given)}, whose images are read.", hint)
    parents = {str(Path(rows.source.name(index)).parent) for index in range(len(rows))}
    if any(Path(parent).resolve().is_relative_to(place) for parent in parents):
        raise UserError(f"--show {folder} holds images that are read.", hint)


def lines_of(answer: Mapping[str, Any], top_k: int) -> list[Line]:
    """The decision with its probability, the likeliest classes, the labels that are there, or the numbers."""
    if "values" in answer:
        lines = [Line(printable(name), f"{value:.4g}") for name, value in answer["values"].items()]
    else:
        ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
        there = [item for item in ranked if item[0] in answer.get("classes", ())]
        shown = there if "classes" in answer else ranked[:top_k]
        lines = [Line(printable(name), f"{share:.1%}") for name, share in shown] or [Line("none", "")]
    more = len(lines) - MOST_LINES
    return lines if more <= 0 else [*lines[: MOST_LINES - 1], Line(f"and {more + 1} more", "")]
