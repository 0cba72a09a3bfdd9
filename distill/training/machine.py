"""Properties of a machine that results depend on, and a memory setting that makes training on a CPU faster."""

import contextlib
import ctypes
import platform
from pathlib import Path

import torch
from accelerate import Accelerator

from distill.training.sharding import fsdp_requested

# Constants from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def machine_facts(accelerator: Accelerator) -> dict[str, str]:
    """The machine's properties by tag name. Each affects the order or precision of additions, and so exact results."""
    processes = accelerator.num_processes
    facts = {
        "precision": accelerator.mixed_precision.replace("no", "float32"),
        "device": accelerator.device.type,
        "processes": str(processes),
        "parallelism": "none" if processes == 1 else "FSDP2" if fsdp_requested() else "DDP",
        "threads": str(torch.get_num_threads()),
        "threads.interop": str(torch.get_num_interop_threads()),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
        "platform": platform.platform(),
    }
    if torch.cuda.is_available():
        facts |= {"gpu": torch.cuda.get_device_name(), "version.cuda": str(torch.version.cuda)}
    return facts


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks. Returning them to the system costs page faults in each step on a CPU."""
    if platform.libc_ver()[0] != "glibc" or torch.cuda.is_available():
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26), (_M_ARENA_MAX, 1)):
        mallopt(option, value)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
