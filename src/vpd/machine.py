"""What a run says of the machine that it runs on, and where that machine keeps compiled programs."""

import ctypes
import gc
import hashlib
import platform
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import jax
from jax._src.lru_cache import LRUCache  # what writes the cache; there is no public name for it

from vpd.cache import cache_directory
from vpd.run_directory import write_atomically

PACKAGES = ("vpd-jax", "jax", "jaxlib", "equinox", "optax", "orbax-checkpoint", "numpy")
SPARED_EVENT = "/jax/compilation_cache/compile_time_saved_sec"


def use_compile_cache(named: str | None) -> None:
    """Keep compiled programs in the named folder, or in one shared by the user's runs, one for each processor."""
    folder = Path(named) if named else cache_directory() / f"xla-{_processor()}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    LRUCache.put = _put_whole


_put = LRUCache.put


def _put_whole(self: LRUCache, key: str, value: bytes) -> None:
    """A program appears in the cache whole or not at all, and takes the place of one that could not be read.

    JAX writes into the file itself: another process may read half of it, and what a killed one leaves is kept for good.
    """
    if self.eviction_enabled or "://" in str(self.path):
        _put(self, key, value)  # under a lock of JAX's own, or where nothing can be renamed
    else:
        write_atomically(Path(str(self.path)) / f"{key}-cache", value)


@contextmanager
def spared_seconds() -> Generator[list[float]]:
    """Seconds of compiling, less those of reading, that the cache has spared each program within it."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == SPARED_EVENT:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def compiler_options() -> dict[str, str | bool]:
    """What XLA is told beside a training program: on CPU, to order operations for memory, not for idle threads.

    Nor to reduce all gradients at once there, for which they would all wait beside what they are reduced to.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_disable_hlo_passes": "cpu-all-reduce-combiner",
    }


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
