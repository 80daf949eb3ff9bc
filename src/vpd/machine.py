"""What a run says of the machine that it runs on, and where that machine keeps compiled programs."""

import ctypes
import gc
import hashlib
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import jax

from vpd.cache import cache_directory

PACKAGES = ("vpd-jax", "jax", "jaxlib", "equinox", "optax", "orbax-checkpoint", "numpy")


def use_compile_cache(named: str | None) -> None:
    """Keep compiled programs in the named folder, or in one shared by the user's runs, one for each processor."""
    folder = Path(named) if named else cache_directory() / f"xla-{_processor()}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def compiler_options() -> dict[str, str | bool]:
    """What XLA is told beside a training program: on CPU, to order operations for memory, not for idle threads."""
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if jax.default_backend() == "cpu" else {}


def return_freed_memory() -> None:
    """Hand pages that were freed back to the system, where the C library keeps them."""
    if sys.platform == "linux":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def _processor() -> str:
    # A program compiled for one processor may hold instructions that another lacks.
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        flags = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]


def common_facts(run_id: str, seed: int) -> dict[str, object]:
    """What ``run.json`` says of any run that begins here and now."""
    return {
        "run_id": run_id,
        "status": "running",
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES},
        "devices": [str(device.device_kind) for device in jax.devices()],
        "revision": _revision(),
    }


def _revision() -> str | None:
    """The commit this code was read from, where it lies in a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
