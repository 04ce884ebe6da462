"""torch.compile for what training runs: the forward and backward pass of the whole model, or of its repeated blocks.

All code is compiled on blank batches before the first step, always in the same order of sizes: so it depends neither on
where a restart begins nor on which batch is first, and no step waits for it.
"""

import logging
import os
import platform
import shutil
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import Batch, BuiltModel, Log
from ddp_ft.data.micro_batches import micro_batch_sizes
from ddp_ft.distributed.environment import Launch, read_launch, usable_cores
from ddp_ft.distributed.stop_request import CutShort
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.models.blocks import repeated_blocks
from ddp_ft.texts import plural
from ddp_ft.training.phase import Phase
from ddp_ft.training.state import TrainState
from ddp_ft.training.step import Learner

OFF, REGIONAL = "false", "regional"
CACHE_VARIABLE, THREADS_VARIABLE = "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"
# All blocks of a network share one limit; most networks have more different blocks than torch's default of 8.
RECOMPILE_LIMIT = 64
TIMED_PASSES = 3
_chosen_caches: set[str] = set()


class Times(NamedTuple):
    """Seconds of compiling, and of a forward and backward pass of the largest micro-batch without and with it."""

    compiling: float
    eager: float
    compiled: float


def check_compiling(config: RunConfig, world: World, launch: Launch) -> None:
    """UserError if compute.compile is set and cannot work in this job or on this machine."""
    if config.compute.compile == OFF:
        return
    if world.device.type == "cuda" and not launch.distributed and torch.cuda.device_count() > 1:
        raise UserError(
            f"compute.compile does not work in one process with {torch.cuda.device_count()} GPUs.",
            "Start one process for each GPU with torchrun, or set CUDA_VISIBLE_DEVICES to one.",
        )
    missing = _missing_for_cuda() if world.device.type == "cuda" else _missing_for_cpu()
    if missing:
        raise UserError(
            f"compute.compile = {config.compute.compile} needs {missing}.", "Install it, or leave compute.compile out."
        )


def _missing_for_cuda() -> str:
    from torch.utils._triton import has_triton

    if not has_triton():
        return "Triton, and a GPU that it supports"
    has_compiler = any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "clang"))
    return "" if has_compiler else "a C compiler (gcc, clang, or what CC names), and there is none"


def _missing_for_cpu() -> str:
    _quieten()
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:  # torch's class of it has had several places
        return "a C++ compiler (g++, or what CXX names), and there is none that runs"
    return ""


def compile_phase(phase: Phase, state: TrainState, log: Log, again: bool) -> None:
    """Compile the model for the current unfreezing stage and micro-batch size; `again`: it was compiled for others.

    Collective. Weights, buffers, random numbers and gradients are unchanged. Raises StopAgreed, and UserError if torch
    fails.
    """
    run, order = phase.run, phase.sampler
    _configure(run.folder.path, log)
    sizes = micro_batch_sizes(order, state.micro_batch, run.model.least)
    compile_in_place(run.model, run.config.compute.compile, dynamic=len([size for size in sizes if size > 1]) > 1)
    times, children = None, _children()
    # Asked to stop, a rank leaves the compiler at once: it may take longer than torchrun or Slurm wait.
    with suppress(CutShort), run.agreement.stop.cutting_short(), warnings.catch_warnings():
        # torch itself looks at the gradients of a block's input.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor", UserWarning)
        times = _warm_up(phase, sizes)
    _end_workers()
    if times is None:  # a thread that waits for its compiler would keep this process alive
        for process in _children() - children:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
    run.agreement.check()
    if times is not None:  # nobody was asked to stop
        state.progress.compile_seconds += times.compiling
        passes = -(-max(map(order.share_length, range(order.steps_per_epoch))) // sizes[0])
        steps_left = phase.last_step(state.progress) - state.progress.step
        log(_verdict(times, passes, steps_left, run.plan.steps_per_epoch, again))


def compile_in_place(built: BuiltModel, mode: str, dynamic: bool) -> None:
    """Mark the module, or with "regional" its repeated blocks, to be compiled at their next call.

    Names in state_dict stay. `dynamic`: the code is for any number of samples. Equal blocks share their code. UserError
    if there are no blocks.
    """
    names = repeated_blocks(built.module, built.head) if mode == REGIONAL else [""]
    if not names:
        raise UserError(
            "compute.compile = regional: this architecture has no repeated blocks.",
            "Use compute.compile=true, or leave it out.",
        )
    torch._dynamo.reset()  # code of an earlier stage is not needed, nor may it change what is compiled now
    for name in names:
        part = built.module.get_submodule(name)
        part.compile(options=_options())
        compiled = part._compiled_call_impl
        if dynamic and compiled is not None:
            part._compiled_call_impl = partial(_any_number, compiled)


def _any_number(compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call with the number of samples marked as dynamic, in the input and in all tensors of as many samples."""
    samples = args[0].shape[0]
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim and value.shape[0] == samples:
            torch._dynamo.maybe_mark_dynamic(value, 0)
    return compiled(*args, **kwargs)


def _options() -> dict[str, Any]:
    import torch._inductor.config as inductor

    # Random masks are drawn as without compiling, so they follow (seed, step, rank) in the same way.
    options = {"fallback_random": True}
    if hasattr(inductor, "deterministic"):  # no kernels chosen by their time, since the choice changes bits
        options["deterministic"] = True
    return options


@contextmanager
def eager(module: nn.Module) -> Iterator[None]:
    """Within the block nothing of the module runs compiled, so that an evaluation has the same result everywhere."""
    parts = {part: part._compiled_call_impl for part in module.modules() if part._compiled_call_impl is not None}
    for part in parts:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, compiled in parts.items():
            part._compiled_call_impl = compiled


def _warm_up(phase: Phase, sizes: list[int]) -> Times:
    """Compile for batches of these sizes, and time a pass of the first with and without compiled code."""
    learner, model = phase.learner, phase.run.model
    batches = [learner.prepare(model.processor.example(size)) for size in sizes]
    learner.set_training()
    plain, compiled = [], []
    with _without_trace(learner.replica, learner.world.device):
        with eager(model.module):
            _pass(learner, batches[0])  # an error of the model itself is not blamed on the compiler
        compiling = _compile(phase, batches)
        for _ in range(TIMED_PASSES):
            with eager(model.module):
                plain.append(_pass(learner, batches[0]))
            compiled.append(_pass(learner, batches[0]))
    return Times(compiling, statistics.median(plain), statistics.median(compiled))


def _compile(phase: Phase, batches: list[Batch]) -> float:
    run = phase.run
    try:
        return sum(_pass(phase.learner, batch) for batch in batches)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if run.agreement.stop.asked:  # the same signal ended the compiler, a process of its own
            raise CutShort from None
        logging.getLogger("ddp_ft").debug("torch.compile failed", exc_info=True)
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise UserError(
            f"torch.compile failed on {run.config.model.name}: {type(error).__name__}: {reason[:300]}",
            "Leave compute.compile out, or try compute.compile=regional. TORCH_LOGS=+inductor shows more.",
        ) from error


def _pass(learner: Learner, batch: Batch) -> float:
    """Run forward and backward as in a step, without the reduction over ranks; return the seconds that it took."""
    began = time.perf_counter()
    with learner.unsynchronised():
        learner.forward(batch).float().square().sum().backward()
    if learner.world.device.type == "cuda":
        torch.cuda.synchronize(learner.world.device)
    return time.perf_counter() - began


@contextmanager
def _without_trace(replica: nn.Module, device: torch.device) -> Iterator[None]:
    """After the block, buffers and generators are as they were and there are no gradients."""
    buffers = list(replica.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        replica.zero_grad(set_to_none=True)
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def _verdict(times: Times, passes: int, steps_left: int, steps_per_epoch: int, again: bool) -> str:
    """One line on what compiling cost, and whether it pays. `passes`: micro-batches of a step."""
    done = "Compiled again, since other parts are trainable or micro-batches are smaller now," if again else "Compiled"
    share = times.compiled / times.eager
    text = (
        f"{done} in {times.compiling:.0f} s: forward and backward take {share:.2f} of their time without it "
        f"({1000 * times.compiled:.3g} and {1000 * times.eager:.3g} ms)."
    )
    steps = steps_to_pay(times, passes)
    if steps is None:
        return f"{text} That does not pay here."
    text += f" That pays after {plural(steps, 'step')} ({steps / steps_per_epoch:.1f} epochs)"
    return f"{text}." if steps <= steps_left else f"{text}, and this run has only {steps_left} left."


def steps_to_pay(times: Times, passes: int) -> int | None:
    """After how many steps compiling has saved more time than it took; None: never. `passes`: micro-batches of each."""
    saved = times.eager - times.compiled
    return int(times.compiling / saved / passes) + 1 if saved > 0 else None


def _configure(folder: Path, log: Log) -> None:
    """Set where torch keeps compiled code, on how many cores it compiles, and what it does not print."""
    launch = read_launch()
    _choose_cache(folder, launch)
    _quieten()
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor

    dynamo.recompile_limit = RECOMPILE_LIMIT
    # Backward is compiled with forward: on CUDA it would be compiled in another thread, where no signal is handled.
    functorch.force_non_lazy_backward_lowering = True
    if THREADS_VARIABLE not in os.environ:
        inductor.compile_threads = max(1, usable_cores() // launch.local_world_size)
    logger = logging.getLogger("torch._dynamo.convert_frame")
    logger.filters = [each for each in logger.filters if not isinstance(each, _LimitFilter)] + [_LimitFilter(log)]


def _choose_cache(folder: Path, launch: Launch) -> None:
    """Keep compiled code in the run folder, unless the user has named a place or this process may not write there.

    Each kind of processor has its own folder, since code is compiled for its instructions; so has each of several
    machines that share the run folder, since file locks do not work between machines everywhere.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    given = os.environ.get(CACHE_VARIABLE)
    if given is not None and given not in (default_cache_dir(), *_chosen_caches):
        return
    kind = blake2b(_processor().encode(), digest_size=4).hexdigest()
    place = kind if launch.local_world_size == launch.world_size else f"{kind}-{platform.node()}"
    cache = folder.absolute() / "compile_cache" / place
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(cache, os.W_OK):
        _chosen_caches.add(str(cache))
        os.environ[CACHE_VARIABLE] = str(cache)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _quieten() -> None:
    """Silence each rank's warning that there is a CUDA toolkit and no GPU."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def _end_workers() -> None:
    """End the processes and threads that compile."""
    from torch._inductor.async_compile import AsyncCompile, shutdown_compile_workers

    threads = AsyncCompile.pool
    if threads.cache_info().currsize:
        threads().shutdown(wait=False, cancel_futures=True)
        threads.cache_clear()
    shutdown_compile_workers()


def _children() -> set[int]:
    """Return the ids of the processes that this one has started; none if there is no /proc."""
    found: set[int] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended
            found.update(map(int, file.read_text().split()))
    return found


class _LimitFilter(logging.Filter):
    """Replaces torch's many lines about its limit of recompilations by one."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.print = log
        self.is_reported = False

    def filter(self, record: logging.LogRecord) -> bool:
        if "recompile_limit" not in record.getMessage():
            return True
        if not self.is_reported:
            self.print("Warning: torch no longer compiles a part of the model: it would have to for each input anew.")
        self.is_reported = True
        return False
