"""The machine that is measured on: one core, one thread, and what to say of it beside a figure.

Import it before torch, JAX or NumPy: they read the thread variables when they are loaded.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

__all__ = ["describe", "one_core", "raise_allocator_thresholds"]

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
XLA = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "jax",
    "optimistix",
    "lineax",
    "jaxopt",
    "torchdeq",
    "torchopt",
    "xitorch",
)


def one_core(core: int | None = None) -> None:
    """Keep this process, and those it starts, on one core and one thread.

    Left out, it is the last core of those allowed: the first serves most interrupts. Torch's
    compiler forgets earlier runs, so that the time of a first call is what it is.
    """
    for name in THREADS:
        os.environ[name] = "1"
    os.environ.setdefault("XLA_FLAGS", XLA)
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if core is None else core})


def raise_allocator_thresholds() -> None:
    """Let glibc keep freed blocks of up to 32 MB instead of returning them to the system.

    A block that is mapped anew costs a page fault for every 4 kB that is touched. Freeing one
    mapped block just under 32 MB, the largest size that adapts it, raises both of glibc's dynamic
    thresholds (see mallopt(3), M_MMAP_THRESHOLD). It changes the whole process: all sides alike.
    """
    import torch

    block = torch.empty((32 << 20) - 65536, dtype=torch.uint8)
    del block


def processor_name() -> str:
    """Return the processor's name as Linux tells it, or what Python knows."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of the packages of this environment that are compared."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, object]:
    """Return processor, versions, date and load, as they belong in a caption."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }
