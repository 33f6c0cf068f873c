"""What the benchmarks measure with: time and memory of a call, interleaved rounds, and the machine's matrix rate."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

PACKAGES = ("wav2vec2-conformer", "numpy", "onnxruntime", "openvino", "onnxscript")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimddp", "bf16", "i8mm")

Say = Callable[[str], None]
Sample = dict[str, float]


def machine(threads: int, device: str = "cpu") -> dict[str, object]:
    """What a figure depends on beside the code."""
    return {**versions(), "threads": threads, "processor": hardware(device)["processor"]}


def versions() -> dict[str, str]:
    """Of torch, transformers and what else there is of `PACKAGES`."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: str = "cpu") -> dict[str, object]:
    """Processor, cores, instructions that matter here and gigabytes of memory; of a GPU its name and its memory."""
    facts = cpu_facts("model name", "flags")
    flags = facts.get("flags", "").split()
    found: dict[str, object] = {
        "processor": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": [name for name in FLAGS if name in flags],
        "gigabytes": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device != "cpu":
        gpu = torch.cuda.get_device_properties(device)
        found |= {"processor": gpu.name, "gigabytes of the device": round(gpu.total_memory / 1e9, 1)}
        found["cuda"] = torch.version.cuda
    return found


def cpu_facts(*names: str) -> dict[str, str]:
    """Lines of /proc/cpuinfo, where there is one."""
    path = Path("/proc/cpuinfo")
    lines = (line.partition(":") for line in path.read_text().splitlines()) if path.exists() else ()
    return {key.strip(): value.strip() for key, _, value in lines if key.strip() in names}


def resident(field: str) -> float:
    """Megabytes of VmRSS (now) or VmHWM (the peak) of this process, as Linux counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def in_use(device: str = "cpu") -> float:
    """Megabytes in use now, of the device; what is freed is given back first."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return resident("VmRSS")


def measure(call: Callable[[], object], device: str = "cpu") -> Sample:
    """Seconds of one call, by the clock and of all processors, and megabytes from what is in use before to the peak.

    The processors' seconds are what counts on a machine that does other work meanwhile. The megabytes are those of the
    device: what is resident for a CPU, what torch has allocated for a GPU.
    """
    gpu = device != "cpu"
    before = in_use(device)
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    taken = timed(call, device)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if gpu else resident("VmHWM")
    return {**taken, "megabytes": peak - before}


def timed(call: Callable[[], object], device: str = "cpu") -> Sample:
    """Seconds of one call, by the clock and of all processors."""
    gpu = device != "cpu"
    if gpu:
        torch.cuda.synchronize(device)
    begun, used = time.perf_counter(), time.process_time()
    call()
    if gpu:
        torch.cuda.synchronize(device)
    return {"seconds": time.perf_counter() - begun, "processor_seconds": time.process_time() - used}


def first_calls(call: Callable[[], object], device: str, *, pooled: bool) -> Sample:
    """Seconds of the first call, which may compile, and megabytes that later calls need.

    Args:
        call: run twice.
        device: where it computes.
        pooled: whether it keeps what it has allocated for the next call, so that only the first one shows it.
    """
    before = in_use(device)
    first = timed(call, device)["seconds"]
    kept = in_use(device) - before if pooled else 0.0
    return {"first_call_seconds": first, "megabytes": measure(call, device)["megabytes"] + kept}


def matrix_rate(device: str = "cpu", dtype: torch.dtype = torch.float32, repeats: int = 9) -> float:
    """Operations a second of a large square product, the median of `repeats`; of int8 with sums in 32 bits."""
    size = 2048 if device == "cpu" else 8192
    if dtype == torch.int8:
        integers = torch.randint(-127, 128, (size, size), dtype=dtype, device=device)

        def product() -> object:
            return torch._int_mm(integers, integers.t())
    else:
        matrix = torch.randn(size, size, device=device).to(dtype)

        def product() -> object:
            return matrix @ matrix

    product()
    return 2 * size**3 / statistics.median(timed(product, device)["seconds"] for _ in range(repeats))


def interleave(
    turns: Mapping[str, Callable[[], Sample]], rounds: int, say: Say
) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """Let all take turns, so that what else the machine does meets all alike.

    Returns:
        What each measured in each round, and of those that failed the reason; these have no further turn.
    """
    taken: dict[str, list[Sample]] = {name: [] for name in turns}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for name, turn in turns.items():
            if name in failed:
                continue
            say(f"{name}, round {number + 1} of {rounds}")
            try:
                taken[name].append(turn())
            except Exception as error:
                failed[name] = reason(error)
    return {name: samples for name, samples in taken.items() if name not in failed}, failed


def medians(samples: list[Sample]) -> dict[str, Any]:
    """Of each quantity, and all the seconds."""
    found: dict[str, Any] = {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
    return {**found, "all_seconds": [round(sample["seconds"], 5) for sample in samples]}


def reason(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"out of memory: {text[:200]}" if is_out_of_memory(error) else f"{type(error).__name__}: {text[:300]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was no room, on the device or (a plain RuntimeError of torch) beside the processor."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
