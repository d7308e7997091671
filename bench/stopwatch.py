"""How long calls take and how much memory they need: interleaved rounds, device timers, high-water marks."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.timings import Machine

LEAST_SECONDS = 2e-3        # of one round: shorter calls are repeated within it
MOST_REPEATS = 256
WARM_UPS = 2
HELD = 0.5                  # seconds: a case slower than this is warmed up once
SLOW = 1.0                  # seconds on a CPU: the first call of such a case is all its warm-up, and its memory is taken of that


@dataclass(slots=True)
class Watched:
    """What the rounds of one case took, per call."""

    repeats: int = 1
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    memory: int | None = None               # as `extra_memory` says, where it was asked for
    memory_by: str = ""
    failure: str = ""


def watch(
    calls: Mapping[Any, Callable[[], Any]], rounds: int, device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None, *, memory: bool = False, patience: float = math.inf,
) -> dict[Any, Watched]:
    """Time each call once per round, in one order on even rounds and in the reverse on odd ones, after a warm-up.

    So a slow minute of the machine falls on all of them. A call shorter than LEAST_SECONDS is repeated within its
    round, and its mean is taken. CPU: a monotonic clock. CUDA: events around the calls, so that the time of a launch
    counts only where the device waits for it. A call that raises is left out from then on, with the reason.
    memory: what a call needs at its peak is taken of a warm-up, too. patience: once the rounds of a case have taken so many
    seconds it is not timed again.
    """
    found = {key: Watched() for key in calls}
    for key, call in calls.items():
        try:
            first = _first(call, found[key], device) if memory else _timed(call, 1, device)[0]
            if memory and first > SLOW and device.type == "cpu":       # elsewhere something was compiled
                continue
            # the fastest of them: one that had to wait for the processor would leave a short call without repeats
            fastest = min(_timed(call, 1, device)[0] for _ in range(WARM_UPS - 1 if first > HELD else WARM_UPS))
            found[key].repeats = max(1, min(MOST_REPEATS, round(LEAST_SECONDS / max(fastest, 1e-9))))
            if memory:
                found[key].memory, found[key].memory_by = extra_memory(call, device)
        except (RuntimeError, ValueError, MemoryError, NotImplementedError) as error:
            found[key].failure = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    working = [key for key in calls if not found[key].failure]
    for i in range(rounds):
        for key in working if i % 2 == 0 else reversed(working):
            if sum(found[key].seconds) * found[key].repeats > patience:
                continue
            seconds, processor = _timed(calls[key], found[key].repeats, device)
            found[key].seconds.append(seconds)
            found[key].processor_seconds.append(processor)
        progress(i + 1, rounds)
    return found


def _first(call: Callable[[], Any], found: Watched, device: torch.device) -> float:
    """Seconds of the first call, of which the memory is taken."""
    start = time.perf_counter()
    found.memory, found.memory_by = extra_memory(call, device)
    return time.perf_counter() - start


def _timed(call: Callable[[], Any], repeats: int, device: torch.device) -> tuple[float, float]:
    """(seconds of one call, seconds of processor time of this process), means over `repeats`."""
    processor = time.process_time()
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize(device)
        seconds = begin.elapsed_time(end) / 1e3
    else:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        seconds = time.perf_counter() - start
    return seconds / repeats, (time.process_time() - processor) / repeats


# -- memory ----------------------------------------------------------------------------------------------------------


def extra_memory(call: Callable[[], Any], device: torch.device) -> tuple[int | None, str]:
    """(bytes above what it found that one warm call needed at its peak, how that was measured).

    CUDA: of torch's allocator, to the byte (rounded up to its 512-byte blocks); what other libraries take is not seen.
    CPU: rise of the resident set's high-water mark of this process, the freed heap having been returned to the system
    before; whoever allocated. Resolution: about 0.3 MiB (pages, and the heap that cannot be returned). Buffers that
    libraries have kept since the warm-up are no part of it. (None, reason) where Linux's /proc is missing.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, "allocator's peak"
    try:
        _return_freed_heap()
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before), "resident high-water mark"
    except OSError:
        return None, "no /proc/self/clear_refs on this system"


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _return_freed_heap() -> None:
    """glibc keeps what was freed, and a later allocation out of it would not show."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):           # another C library: the reading is a lower bound there
        pass


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


# -- the machine -----------------------------------------------------------------------------------------------------


def machine(device: torch.device) -> Machine:
    """Of this process now: call it after the number of threads is set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cuda = device.type == "cuda"
    return Machine(
        device=device.type, processor=torch.cuda.get_device_name(device) if cuda else processor(), cores=cores,
        threads=torch.get_num_threads(), system=f"{platform.system()}-{platform.machine()}", torch=torch.__version__,
        backend=f"CUDA {torch.version.cuda}" if cuda else torch.backends.cpu.get_cpu_capability())


def processor() -> str:
    """Model name of the CPU, with family and model number where the name is a generic one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [facts[key] for key in ("cpu family", "model") if key in facts]
    return f"{name} ({'/'.join(numbers)})" if numbers else name
