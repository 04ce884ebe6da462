"""Text files as texts."""

from pathlib import Path
from typing import Any

import torch

from ddp_ft.contracts import BadSample, Batch, Sample, StorageFault
from ddp_ft.errors import is_of_the_machine, reason_of

# Other encodings, by how their files begin.
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_text(path: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, its line ends as "\\n".

    Raises BadSample if it cannot be read or has another encoding, which the message names if it is known; StorageFault
    if the machine or its disks failed.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        kind = StorageFault if is_of_the_machine(error) else BadSample
        raise kind(f"{path}: {reason_of(error)}") from None
    return decoded_text(content, path)


def decoded_text(content: bytes, name: str) -> str:
    """The text of these bytes, as of `read_text`; `name` is for its message."""
    if mark := next((mark for mark in _MARKS if content.startswith(mark)), None):
        raise BadSample(f"{name}: it is {_MARKS[mark]}, not UTF-8 (iconv -f {_MARKS[mark]} -t UTF-8 converts it)")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        where = f"byte 0x{content[error.start]:02X} in line {line}"
        raise BadSample(f"{name}: it is not UTF-8: {where} (iconv -f WINDOWS-1252 -t UTF-8, if it is that)") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def encoded(sample: Sample) -> Batch:
    """The sample with its texts as UTF-8: NAME (uint8) with NAME_length (int64, a scalar)."""
    batch: dict[str, Any] = dict(sample)
    for name in [name for name, value in sample.items() if isinstance(value, str)]:
        content = bytearray(batch[name].encode("utf-8", "surrogatepass"))
        batch[name] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        batch[f"{name}_length"] = torch.tensor(len(content))
    return batch
