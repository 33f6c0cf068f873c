"""Combinations in a process of their own, so that what one cannot hold in memory ends it and not the sweep."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from measuring import Say, reason
from networks import Case, Network
from peers import PEERS
from tasks import TASKS
from tasks.common import Run, Settings

RESERVE = 2**29  # bytes that are left to others

Result = dict[str, Any]


def run_cases(cases: Sequence[Case], settings: Settings, say: Say) -> Iterator[Result]:
    """Measure cases of one network, one result each and in their order.

    They share a process, and what peers have exported. A peer that ends it is recorded with the reason, and the others
    start again in a new one.
    """
    left = list(cases)
    excluded: dict[str, str] = {}  # of the first case that is left
    with tempfile.TemporaryDirectory(prefix="wav2vec2-conformer-benchmark-") as folder:
        while left:
            running = ""
            process, pipe = start(left, settings, excluded, folder)
            with contextlib.suppress(EOFError), pipe:
                while left:
                    result, running = pipe.recv()
                    if result is None:
                        say(running)
                        continue
                    yield result
                    del left[0]
                    excluded, running = {}, ""
            process.join()
            if left:
                culprit, why = running.partition(", ")[0], ending(process.exitcode)
                if not running or culprit in excluded:
                    yield {"failed": f"{why}, while {running or 'starting'}"}
                    del left[0]
                    excluded = {}
                else:
                    excluded[culprit] = f"{why}, while {running}"


def start(cases: Sequence[Case], settings: Settings, excluded: dict[str, str], folder: str) -> tuple[Any, Connection]:
    """A process that measures cases, and the end of its pipe to read from."""
    context = multiprocessing.get_context("spawn")
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=measure_cases, args=(writing, cases, settings, excluded, folder), daemon=True)
    process.start()
    writing.close()
    return process, reading


def ending(code: int | None) -> str:
    """How a process ended that gave no result."""
    if code == -signal.SIGKILL:
        return "the process was killed, as it is where memory runs out"
    return f"the process ended with {signal.Signals(-code).name if code is not None and code < 0 else f'code {code}'}"


def measure_cases(
    pipe: Connection, cases: Sequence[Case], settings: Settings, excluded: dict[str, str], folder: str
) -> None:
    """Send what is running and what came out; what `excluded` says holds for the first case."""

    def send(result: Result | None, running: str = "") -> None:
        try:
            pipe.send((result, running))
        except BrokenPipeError:
            os._exit(1)  # nobody is there any more

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch._logging.set_logs(all=logging.ERROR)  # of graph breaks in compiled peers
    transformers.logging.set_verbosity_error()
    if cases[0].device == "cpu":
        limit_memory()
    network: Network | None = None
    for case in cases:
        torch.set_num_threads(case.threads)
        torch._dynamo.reset()  # what was compiled for other lengths and threads
        peers = [PEERS[name] for name in settings.peers]
        run = Run(case, peers, settings, excluded, lambda what: send(None, what))
        try:
            network = network or Network.of(case, Path(folder))
            result = TASKS[case.task].run(run, network)
        except Exception as error:
            result = {"failed": reason(error)}
        send(result)
        excluded = {}


def limit_memory() -> None:
    """Let allocations beyond what is free fail, and this process be the one that Linux ends if that was not enough."""
    if sys.platform != "linux":
        return
    import resource

    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    used = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    limit = (int(free.split()[1]) + int(used.split()[1])) * 1024 - RESERVE
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
