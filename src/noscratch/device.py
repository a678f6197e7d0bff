"""Where a training job runs: the rule for `run.device`, and one lock per GPU so that no two jobs share one."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from noscratch.errors import NoscratchError

CPUINFO = Path("/proc/cpuinfo")
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # widest first


def processor() -> str:
    """The processor as the system names it; of x86 its generation and widest vectors too, on which the last bits of a
    result depend, and which the name alone, as that of a virtual machine, may leave open: "AMD EPYC (25/1, AVX2)"."""
    if not CPUINFO.is_file():
        return platform.processor()
    first, _, _ = CPUINFO.read_text(encoding="utf-8").partition("\n\n")
    lines = (line.partition(":") for line in first.splitlines())
    found = {name.strip(): value.strip() for name, _, value in lines}
    if "flags" not in found:  # x86 alone has them
        return found.get("model name") or platform.processor()
    vectors = next((name for flag, name in VECTORS.items() if flag in found["flags"].split()), "SSE")
    return f"{found['model name']} ({found['cpu family']}/{found['model']}, {vectors})"


def gpu_count() -> int:
    """GPUs of this host that CUDA_VISIBLE_DEVICES leaves visible, by the driver's own word.

    NOSCRATCH_GPUS overrides both (to use fewer, or to test).
    """
    asked = os.environ.get("NOSCRATCH_GPUS")
    if asked is not None:
        if not asked.isdigit():
            raise NoscratchError(
                f"NOSCRATCH_GPUS is a whole number of GPUs, 0 or more; got {asked!r}. Correct or unset it."
            )
        return int(asked)
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    if listing.returncode:
        return 0
    present = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if visible is None else min(present, len([d for d in visible.split(",") if d not in ("", "-1")]))


def choose(device: str, tier: str, gpus: int) -> str:
    """ "cuda" or "cpu" for a training job, from `run.device`, the tier and the number of GPUs.

    Raises NoscratchError where there is no GPU and one is wanted: with `cuda`, and above the smoke tier unless it says
    `cpu`, so that a night of CPU time is never spent by accident.
    """
    if device == "cpu":
        return "cpu"
    if gpus:
        return "cuda"
    if tier == "smoke" and device == "auto":
        return "cpu"
    raise NoscratchError(
        f"Training jobs of tier {tier} run on a GPU (run.device: {device}); this host has none. "
        "Run them on a GPU host, or set run.device: cpu in params.yaml to spend CPU time on them."
    )


def require(device: str) -> None:
    """Return when PyTorch can compute on `device`; NoscratchError says what is missing.

    Must come after `gpu_slot`: whoever asks CUDA fixes which GPUs it sees.
    """
    import torch

    if not re.fullmatch("cpu|cuda(:[0-9]+)?", device):
        raise NoscratchError(f"A device is cpu, cuda or cuda:<number>; got {device!r}. Name one of them.")
    if device == "cpu":
        return
    seen = torch.cuda.device_count()
    if int(device.partition(":")[2] or 0) >= seen:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise NoscratchError(
            f"Device {device} is a GPU that PyTorch sees; torch {torch.__version__} (built for CUDA: "
            f"{torch.version.cuda or 'no'}) sees {seen}, with CUDA_VISIBLE_DEVICES {visible or 'not set'}. Install the "
            "driver and a build for CUDA, or compute on the CPU (run.device: cpu in params.yaml). NOSCRATCH_GPUS must "
            "not count GPUs that are not there."
        )


def together() -> bool:
    """Is this one of several processes that torchrun (or whoever sets the same variables) has started?"""
    return {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"} <= os.environ.keys()


def rank() -> int:
    """Which of them this is; 0 for one by itself."""
    return int(os.environ["RANK"]) if together() else 0


@contextmanager
def gpu_slot(folder: Path, gpus: int) -> Iterator[int]:
    """Hold one of `gpus` GPUs: a lock file each in `folder`, freed by the kernel when the holder dies, however it dies.

    Waits until one is free and sets CUDA_VISIBLE_DEVICES to it; must come before CUDA is initialized. The hosts of a
    cluster share `folder`, and each Slurm job counts the GPUs that it was given from 0: both are in a lock's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    here = f"{platform.node()}-{os.environ.get('SLURM_JOB_ID', '')}"
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    allowed = before.split(",") if before else [str(index) for index in range(gpus)]
    while True:
        for slot, device in enumerate(allowed[:gpus]):
            lock = os.open(folder / f"{here}-gpu{device}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = device
            try:
                yield slot
            finally:
                if before is None:
                    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
                else:
                    os.environ["CUDA_VISIBLE_DEVICES"] = before
                os.close(lock)
            return
        time.sleep(0.2)
