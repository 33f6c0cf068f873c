"""What the benchmarks measure with: time and memory of a call, and the machine's matrix-product rate."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers


def machine(threads: int, device: str = "cpu") -> dict[str, object]:
    """What a figure depends on beside the code."""
    name = platform.processor() or platform.machine()
    if device != "cpu":
        name = torch.cuda.get_device_name(device)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {**versions, "threads": threads, "processor": name}


def resident(field: str) -> float:
    """Megabytes of VmRSS (now) or VmHWM (the peak) of this process, as Linux counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(call: Callable[[], object], device: str = "cpu") -> dict[str, float]:
    """Seconds of one call, by the clock and of all processors, and megabytes from what is in use before to the peak.

    The processors' seconds are what counts on a machine that does other work meanwhile. The megabytes are those of the
    device: what is resident for a CPU, what torch has allocated for a GPU.
    """
    gc.collect()
    gpu = device != "cpu"
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 2**20
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
    begun, used = time.perf_counter(), time.process_time()
    call()
    if gpu:
        torch.cuda.synchronize(device)
    taken = {"seconds": time.perf_counter() - begun, "processor seconds": time.process_time() - used}
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if gpu else resident("VmHWM")
    return {**taken, "megabytes": peak - before}


def matrix_rate(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of a large square product, the median of nine."""
    size = 2048 if device == "cpu" else 8192
    matrix = torch.randn(size, size, device=device).to(dtype)
    matrix @ matrix
    times = [measure(lambda: matrix @ matrix, device)["seconds"] for _ in range(9)]
    return 2 * size**3 / statistics.median(times)
