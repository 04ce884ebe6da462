"""Text files as texts."""

from pathlib import Path
from typing import Any

import torch

from ddp_ft.contracts import BadSample, Batch, Sample, StorageFault
from ddp_ft.data.cells import cell_of_list
from ddp_ft.data.text.encoding import OtherEncodingError, decoded
from ddp_ft.errors import is_of_the_machine, reason_of


def read_text(path: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, its line ends as "\\n".

    Raises BadSample if it cannot be read or has another encoding, which the message names if it is known; StorageFault
    if the machine or its disks failed.
    """
    try:
        return decoded(Path(path).read_bytes())
    except OtherEncodingError as error:
        raise BadSample(f"{path}: {error}") from None
    except OSError as error:
        kind = StorageFault if is_of_the_machine(error) else BadSample
        raise kind(f"{path}: {reason_of(error)}") from None


def encoded(sample: Sample) -> Batch:
    """The sample with its texts as UTF-8: NAME (uint8) with NAME_length (int64, a scalar); lists of words as one text
    each."""
    batch: dict[str, Any] = dict(sample)
    for name in [name for name, value in sample.items() if isinstance(value, (str, list))]:
        text = batch[name] if isinstance(batch[name], str) else cell_of_list(batch[name])
        content = bytearray(text.encode("utf-8", "surrogatepass"))
        batch[name] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        batch[f"{name}_length"] = torch.tensor(len(content))
    return batch
