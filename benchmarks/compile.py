"""What torch.compile costs and gains here: `python -m benchmarks.compile [--model NAME] [--image-size N] [--batch N]`.

Each mode runs in a process of its own with an empty cache. Passes (forward and backward on noise in memory) with and
without compiled code take turns, so other work on the machine slows both; the ratio is the median of those of pairs.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time

MODES = ("true", "regional")


def main() -> None:
    """Measure each mode and print a row of a table for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", choices=MODES, action="append")
    options = parser.parse_args()
    print(f"{options.model}, {options.image_size} px, batch {options.batch}, {options.threads} thread(s)")
    print("| mode | compiling, s | from the cache, s | time of a pass, compiled / eager | pays after, passes |")
    print("|---|---|---|---|---|", flush=True)
    for mode in options.mode or MODES:
        with tempfile.TemporaryDirectory() as cache:
            first, *timing = _in_a_process(options, mode, cache)
            again, *_ = _in_a_process(options, mode, cache)
        print(row(mode, first, again, *timing), flush=True)


def row(mode: str, first: float, again: float, eager: float, ratio: float) -> str:
    """One row, from seconds of compiling without and with a cache, of an eager pass, and the ratio of a pass."""
    pays = f"{first / (eager * (1 - ratio)):.0f}" if ratio < 1 else "never"
    return f"| {mode} | {first:.0f} | {again:.0f} | {ratio:.2f} | {pays} |"


def _in_a_process(options: argparse.Namespace, mode: str, cache: str) -> tuple[float, float, float]:
    environment = os.environ.copy()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(measure, (options, mode))
    finally:
        os.environ.clear()
        os.environ.update(environment)


def measure(options: argparse.Namespace, mode: str) -> tuple[float, float, float]:
    """Seconds of compiling, of an eager pass, and the ratio of a compiled pass to an eager one."""
    import torch
    import torch._inductor.config

    from ddp_ft.models import build_model
    from ddp_ft.models.precision import is_convolutional, place
    from ddp_ft.training.compile import compile_in_place, eager

    torch.set_num_threads(options.threads)
    torch._inductor.config.compile_threads = 1  # a fork of this pool may have no children, and seconds are comparable
    torch.manual_seed(0)
    built = build_model(options.model, 10, options.image_size, "none")
    device, channels_last = torch.device(options.device), is_convolutional(built.module)
    module = place(built.module, device, channels_last).train()
    images = torch.randn(options.batch, 3, options.image_size, options.image_size, device=device)
    if channels_last:
        images = images.to(memory_format=torch.channels_last)

    def one_pass() -> float:
        module.zero_grad(set_to_none=True)
        began = time.perf_counter()
        module(images).square().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    compile_in_place(built, mode, dynamic=False)
    with eager(module):
        one_pass()
    compiling = one_pass()
    pairs = []
    for _ in range(options.pairs):
        with eager(module):
            plain = one_pass()
        pairs.append((plain, one_pass()))
    return compiling, statistics.median(plain for plain, _ in pairs), statistics.median(c / p for p, c in pairs)


if __name__ == "__main__":
    main()
