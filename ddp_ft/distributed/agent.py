"""The ranks of this machine, started and watched as by torchrun: by torch's elastic agent, here in a thread.

Meanwhile the main thread passes signals on. torchrun ends its ranks on a signal, with a traceback of its own, and adds
a table to what a failed rank has printed; here the ranks decide what a signal means, and their exit code is the answer.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from uuid import uuid4

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from ddp_ft.distributed.processes import Meeting, Outcome
from ddp_ft.distributed.stop_request import heeded_signals
from ddp_ft.errors import EXIT_DONE, EXIT_FAILED, UserError, one_line

OnSignal = Callable[[signal.Signals], None]
# Plus its number: the exit code of what a signal has ended, as shells have it.
ENDED_BY_SIGNAL = 128
# Seconds in which ranks may have been started, though the agent does not have their numbers yet.
_STARTING = 1.0
# How long a signal may wait for the main thread.
_LOOK_EVERY = 0.2


def run_ranks(
    module: str, arguments: Sequence[str], processes: int, meeting: Meeting, on_signal: OnSignal | None = None
) -> Outcome:
    """Run `python -m module arguments` in so many processes to their end.

    The stop signals are passed on to them, or to `on_signal`. The code is EXIT_DONE if it is that of all, else that of
    the first to fail. UserError if the nodes do not meet. To be called by the main thread.
    """
    ranks = _Ranks(("-u", "-m", module, *arguments), processes, meeting, on_signal)
    logging.disable(logging.CRITICAL)  # the agent would report each failure in its own way
    try:
        return ranks.run()
    finally:
        logging.disable(logging.NOTSET)


class _NothingRuns(BaseException):
    """A signal came before there was a rank to pass it on to."""


class _Ranks:
    def __init__(self, words: tuple[str, ...], processes: int, meeting: Meeting, on_signal: OnSignal | None) -> None:
        self.words, self.processes, self.meeting = words, processes, meeting
        self.on_signal = on_signal or self._pass_on
        self.asked: signal.Signals | None = None
        self._agent: LocalElasticAgent | None = None
        self._result: RunResult | None = None
        self._error: BaseException | None = None

    def run(self) -> Outcome:
        thread = threading.Thread(target=self._run_agent, name="elastic agent", daemon=True)
        try:
            with self._listening():
                thread.start()
                # Not for ever: a signal that the kernel gives to another thread does not wake this one.
                while thread.is_alive():
                    thread.join(_LOOK_EVERY)
        except _NothingRuns:
            assert self.asked is not None
            return Outcome(ENDED_BY_SIGNAL + self.asked)
        return self._outcome()

    def _run_agent(self) -> None:
        try:
            handler = get_rendezvous_handler(self._parameters())
            spec = WorkerSpec(
                role="default", local_world_size=self.processes, rdzv_handler=handler, entrypoint=sys.executable,
                args=self.words, max_restarts=self.meeting.restarts, local_addr=self.meeting.address,
            )  # fmt: skip
            self._agent = LocalElasticAgent(spec, DefaultLogsSpecs(log_dir=os.devnull))
            try:
                self._result = self._agent.run()
            finally:
                handler.shutdown()
        except BaseException as error:
            self._error = error

    def _parameters(self) -> RendezvousParameters:
        meeting = self.meeting
        return RendezvousParameters(
            "c10d", meeting.endpoint, meeting.job or str(uuid4()), meeting.least_nodes, meeting.most_nodes,
            meeting.address,
        )  # fmt: skip

    @contextmanager
    def _listening(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self._on_signal) for number in heeded_signals()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.asked = self.asked or signal.Signals(number)
        self.on_signal(signal.Signals(number))

    def _pass_on(self, number: signal.Signals) -> None:
        for pid in self._started():
            with suppress(ProcessLookupError):  # it has ended
                os.kill(pid, number)

    def _started(self) -> list[int]:
        """The numbers of all ranks. Raises _NothingRuns if there are none."""
        deadline = time.monotonic() + _STARTING
        while True:
            ids = [worker.id for worker in (self._agent.get_worker_group().workers if self._agent else [])]
            if ids and None not in ids:
                return ids
            # Once the first has its number, the others get theirs, each after the agent has looked up the host's name.
            if not any(ids) and time.monotonic() > deadline:
                raise _NothingRuns
            time.sleep(0.02)

    def _outcome(self) -> Outcome:
        if isinstance(self._error, (RendezvousError, DistError, ValueError)):
            raise UserError(
                f"The nodes did not meet at {self.meeting.endpoint}: {one_line(self._error)}.",
                "The first node of that name must run the same command, and all must reach its port.",
            )
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise UserError("The job that this node should join has ended.", "Was it started with the others?")
        failures = self._result.failures
        if not failures:
            return Outcome(EXIT_DONE)
        rank = min(failures, key=lambda each: failures[each].timestamp)
        return self._failure(rank, failures[rank].exitcode)

    def _failure(self, rank: int, code: int) -> Outcome:
        if code >= 0:
            return Outcome(code)
        if self.asked:
            return Outcome(ENDED_BY_SIGNAL - code)
        number = signal.Signals(-code)
        hint = "Something outside of this program has ended it, or native code that it called."
        if number == signal.SIGKILL:
            hint = "Nearly always the memory of the machine or of the job was full."
        return Outcome(EXIT_FAILED, f"Rank {rank} was ended by {number.name}.", f"{hint} The same command goes on.")
