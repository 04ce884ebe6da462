"""How far the machine is used: memory of this process and its device, the load of processor and GPU."""

import resource
import sys
from contextlib import suppress

import psutil
import torch


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the most memory that this rank has had, in MiB: of the GPU since the last call, as tensors and as torch
    reserves it; on a CPU of the process since it began."""
    if device.type == "cuda":
        peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
        return dict(zip(("memory_allocated_mib", "memory_reserved_mib"), (peak / 2**20 for peak in peaks), strict=True))
    unit = 2**20 if sys.platform == "darwin" else 2**10  # getrusage(2): bytes there, KiB elsewhere
    return {"memory_process_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def machine_use(device: torch.device) -> dict[str, float]:
    """Return `peak_memory`, and shares in use: of all cores since the last call, of the machine's memory now, and of
    the GPU if its driver's library is installed."""
    use = {"cpu_load": psutil.cpu_percent() / 100, "host_memory_share": psutil.virtual_memory().percent / 100}
    if device.type == "cuda":
        with suppress(Exception):  # without NVML, and on GPUs whose owner hides it
            use["gpu_load"] = torch.cuda.utilization(device) / 100
    return peak_memory(device) | use
