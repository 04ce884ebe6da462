"""The kinds of files of which each holds one sample, and how they are told from other files."""

import os
import re
from dataclasses import dataclass

# Suffixes of files that lie beside samples: they are not opened to look for what their names do not tell.
_OTHERS = frozenset(
    (".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".parquet", ".yaml", ".yml", ".md", ".html", ".htm", ".log",
     ".ini", ".cfg", ".toml", ".py", ".ipynb", ".sh", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".pkl", ".h5",
     ".mat", ".zip", ".gz", ".tar", ".pdf", ".svg", ".db", ".lock", ".mp4", ".dng", ".nef", ".cr2")
)  # fmt: skip
# How images begin; of a file without a suffix also a TIFF, since the raw files of cameras begin as it does.
_STARTS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|....ftypavi[fs]|\0\0\0\x0cjP  |\xff\x4f\xff\x51"
    rb"|BM....\0\0\0\0", re.DOTALL
)  # fmt: skip
_STARTS_OF_TIFF = (b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class FileKind:
    """Files of the kind `name`, which is that of their source and their noun in messages: "image", "text".

    `suffixes` are those of their names, of which messages name the `usual` ones. Files with the suffix `spare` are
    samples only where there are no others. `starts`: files of other names are known by how they begin.
    """

    name: str
    suffixes: frozenset[str]
    usual: tuple[str, ...]
    spare: str = ""
    starts: bool = False

    @property
    def suffix_list(self) -> str:
        """The usual suffixes, for messages."""
        return ", ".join(self.usual)

    def has_name(self, name: str) -> bool:
        """Whether the name has a suffix of these files, in any case."""
        return suffix_of(name) in self.suffixes

    def begins(self, path: str) -> bool:
        """Whether a file without such a suffix, and without that of something else, begins as these files do."""
        suffix = suffix_of(path[path.rfind("/") + 1 :])
        if not self.starts or suffix in _OTHERS or not os.path.isfile(path):  # noqa: PTH113  (a pipe might never end)
            return False
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (a Path for each takes longer)
                start = file.read(16)
        except OSError:
            return False
        return bool(_STARTS.match(start)) or (not suffix and start.startswith(_STARTS_OF_TIFF))


def suffix_of(name: str) -> str:
    """In lower case; empty if there is none. os.path.splitext takes three times as long."""
    place = name.rfind(".")
    return name[place:].lower() if place > 0 else ""


IMAGES = FileKind(
    "image",
    frozenset(
        (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".avif", ".avifs",
         ".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm")
    ),
    (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".avif", ".tif", ".jp2", ".ppm"),
    spare=".npy",  # NumPy's arrays, which often lie beside images
    starts=True,
)  # fmt: skip
TEXTS = FileKind("text", frozenset((".txt",)), (".txt",))
# In this order: texts often lie beside images, as their descriptions. A further kind is a line here.
FILE_KINDS = {kind.name: kind for kind in (IMAGES, TEXTS)}
