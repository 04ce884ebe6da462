"""Versions: of packages, of torch's CUDA and of the GPUs' driver, and whether they fit together."""

import ctypes
import importlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ddp_ft.diagnostics.finding import NOTE, OK, PROBLEM, WARNING, Finding
from ddp_ft.distributed.environment import output_of
from ddp_ft.errors import typed_line
from ddp_ft.version import versions_of

# The least versions that setup.cfg names, for a folder that is not installed and so has no metadata.
LEAST = {
    "torch": "2.6", "torchvision": "0.21", "timm": "1.0.15", "torchmetrics": "1.4", "tensorboard": "2.15",
    "numpy": "1.26", "pillow": "10.0", "safetensors": "0.5", "simplejpeg": "1.8",
}  # fmt: skip
# Their modules, if the names differ.
_IMPORTED_AS = {"pillow": "PIL"}
# A run works without these.
OPTIONAL = {"simplejpeg": "JPEGs are decoded by Pillow instead, to the same bits, in half again the time."}


@dataclass(frozen=True)
class Gpus:
    """GPUs and CUDA. `listed` are the GPUs that nvidia-smi names, `usable` is the number that torch can use. `build` is
    the (major, minor) version of CUDA that torch was built with (None: for CPUs alone), `driver` the newest one that
    the driver supports."""

    listed: tuple[str, ...]
    build: tuple[int, int] | None = None
    driver: tuple[int, int] | None = None
    usable: int = 0
    nccl: str = ""
    cudnn: str = ""


def all_versions() -> dict[str, str]:
    """The versions of Python and of each package that is installed."""
    return {"python": platform.python_version(), **versions_of(LEAST)}


def packages(
    load: Callable[[str], ModuleType] = importlib.import_module, versions: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Whether each package is installed, new enough, and can be imported."""
    yield Finding("python", OK, f"{platform.python_version()} on {platform.platform()}")
    installed = versions_of(LEAST) if versions is None else versions
    for name, least in LEAST.items():
        yield _package(name, least, installed.get(name), load)


def _package(name: str, least: str, version: str | None, load: Callable[[str], ModuleType]) -> Finding:
    if version is None and name in OPTIONAL:
        return Finding(name, NOTE, "not installed", f"{OPTIONAL[name]} pip install {name}")
    if version is None:
        return Finding(name, PROBLEM, f"not installed; {least} or newer is needed", f"pip install '{name}>={least}'")
    try:
        load(_IMPORTED_AS.get(name, name))
    except Exception as error:
        remedy = f"Install it anew: pip install --force-reinstall {name}"
        if name == "torchvision" and "nms" in str(error):
            remedy = "torchvision was built for another torch. Install both together, from one place: pip install "
            remedy += "--upgrade --force-reinstall torch torchvision"
        return Finding(name, PROBLEM, f"{version} cannot be imported: {typed_line(error)}", remedy)
    if _numbers(version) < _numbers(least):
        text = f"{version}; {least} or newer is needed"
        return Finding(name, WARNING, text, f"pip install --upgrade '{name}>={least}'")
    return Finding(name, OK, version)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers: 2.6.0+cu124 -> (2, 6, 0)."""
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdecimal())


def list_gpus() -> tuple[str, ...]:
    """The machine's GPUs, usable by torch or not; none without nvidia-smi."""
    listed = output_of(["nvidia-smi", "-L"], 20, any_code=True) or ""
    return tuple(line.split("(UUID")[0].strip() for line in listed.splitlines() if line.startswith("GPU "))


def look_at_gpus() -> Gpus:
    """The machine's GPUs, and what torch can use of them."""
    import torch

    listed, build = list_gpus(), torch.version.cuda
    if build is None or not torch.cuda.is_available():
        return Gpus(listed, _version(build), driver_version())
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    cudnn = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    return Gpus(listed, _version(build), driver_version(), torch.cuda.device_count(), nccl, cudnn)


def _version(text: str | None) -> tuple[int, int] | None:
    numbers = _numbers(text or "")
    return (numbers[0], numbers[1]) if len(numbers) > 1 else None


def driver_version(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[int, int] | None:
    """The newest version of CUDA that the installed driver supports, as its library says; None without a driver.

    torch knows it too, but has no function for it from 2.11 on.
    """
    number = ctypes.c_int(0)
    with suppress(OSError, AttributeError):
        load("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    return (number.value // 1000, number.value % 1000 // 10) if number.value else None


def cuda(gpus: Gpus, visible: str | None) -> Iterator[Finding]:
    """Whether torch can use the machine's GPUs; `visible` is CUDA_VISIBLE_DEVICES, None if it is not set."""
    if not gpus.listed and not gpus.usable:
        yield Finding("cuda", OK, f"no GPU on this machine; torch is built {_built(gpus)}", value=0.0, unit="GPUs")
        return
    count = max(len(gpus.listed), gpus.usable)
    if gpus.build is None or not gpus.usable:
        yield _unusable(gpus, visible, count)
        return
    names = ", ".join(sorted({name.partition(": ")[2] or name for name in gpus.listed})) or "GPUs"
    text = f"{gpus.usable} x {names}, {_built(gpus)}, NCCL {gpus.nccl}, cuDNN {gpus.cudnn}"
    yield Finding("cuda", OK, text, value=float(gpus.usable), unit="GPUs")
    if gpus.usable < len(gpus.listed):
        remedy = "Unset CUDA_VISIBLE_DEVICES, unless that is meant."
        yield Finding("gpus", NOTE, f"{gpus.usable} of {len(gpus.listed)} are visible", remedy)


def _unusable(gpus: Gpus, visible: str | None, count: int) -> Finding:
    verdict, text = PROBLEM, f"{count} GPU(s), but torch can use none"
    remedy = "Look at nvidia-smi; in a container the GPUs must be passed on (docker run --gpus all, apptainer --nv)."
    if gpus.build is None:
        text = f"{count} GPU(s), but torch is built for CPUs alone"
        remedy = "Install a build of torch for CUDA, and torchvision with it; or use --device cpu."
    elif visible is not None and (visible == "" or visible.startswith("-")):
        verdict, text = NOTE, f"{text}: CUDA_VISIBLE_DEVICES is '{visible}'"
        remedy = "Unset it to use them."
    elif gpus.driver is not None and gpus.driver[0] < gpus.build[0]:
        text += f": the driver supports CUDA {_dotted(gpus.driver)}, torch is built {_built(gpus)}"
        remedy = "Install a newer driver, or a build of torch for an older CUDA."
    return Finding("cuda", verdict, text, remedy, 0.0, "GPUs")


def _built(gpus: Gpus) -> str:
    return "for CPUs alone" if gpus.build is None else f"for CUDA {_dotted(gpus.build)}"


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def differing(versions: Sequence[Mapping[str, str]]) -> list[str]:
    """The versions that differ between ranks, as 'name: rank 0 has 1, rank 2 has 2'."""
    lines = []
    for name, mine in versions[0].items():
        others = {rank: each.get(name, "none") for rank, each in enumerate(versions) if each.get(name) != mine}
        if others:
            rank, other = next(iter(others.items()))
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            lines.append(f"{name}: rank 0 has {mine}, rank {rank}{more} has {other}")
    return lines
