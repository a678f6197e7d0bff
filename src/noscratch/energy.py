"""Joules that a device has used since a moment, from its own counter: RAPL for processors, NVML for one GPU.

Counters are of whole devices: what else runs there is counted too.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"

Reading = tuple[float, float]
"""Joules, and where the counter starts again from 0 (infinity: never)."""


class Meter:
    """`joules()` since the meter was made; None where no counter can be read."""

    def __init__(self, device: str, powercap: Path = POWERCAP) -> None:
        """device: "cpu" for all packages of the host, "cuda" for the GPU that this process computes on."""
        self._counters = _gpu() if device == "cuda" else _packages(powercap)
        self._last = [counter()[0] for counter in self._counters]
        self._total = 0.0

    def joules(self) -> float | None:
        """Call it at least once a minute: a counter that has started again twice looks as if once."""
        try:
            for i, counter in enumerate(self._counters):
                now, wrap = counter()
                self._total += now - self._last[i] + (wrap if now < self._last[i] else 0.0)
                self._last[i] = now
        except (OSError, ValueError):  # a sum with a gap is no measurement
            self._counters = []
        return self._total if self._counters else None


def _packages(powercap: Path) -> list[Callable[[], Reading]]:
    """One counter for each processor package. Linux lets root alone read them unless told otherwise."""
    found = []
    for folder in sorted(powercap.glob("*-rapl:*")):
        try:
            if (folder / "name").read_text(encoding="ascii").startswith("package"):
                int((folder / "energy_uj").read_text(encoding="ascii"))
                wrap = int((folder / "max_energy_range_uj").read_text(encoding="ascii")) / 1e6
                found.append(_package(folder / "energy_uj", wrap))
        except (OSError, ValueError):
            continue
    return found


def _package(path: Path, wrap: float) -> Callable[[], Reading]:
    return lambda: (int(path.read_text(encoding="ascii")) / 1e6, wrap)


def _gpu() -> list[Callable[[], Reading]]:
    """NVML's total energy of the current CUDA device (Volta and newer), in millijoules since the driver was loaded."""
    import torch

    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    try:
        nvml = ctypes.CDLL(NVML)
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}".encode()
    except (OSError, AttributeError, AssertionError, RuntimeError):
        return []

    def read() -> Reading:
        if code := nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
            raise OSError(code, "NVML gives no energy")
        return millijoules.value / 1000, math.inf

    try:
        found = not nvml.nvmlInit_v2() and not nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) and read()
    except OSError:
        return []
    return [read] if found else []
