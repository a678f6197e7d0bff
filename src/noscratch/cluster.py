"""What a cluster must have before jobs are handed to it, and how one of its jobs queues up again."""

from __future__ import annotations

import os
import shutil
import subprocess

from noscratch.errors import NoscratchError

PATIENCE = 20  # seconds; a controller that is busy answers within its MessageTimeout, 10 unless set otherwise


def require_slurm() -> None:
    """Return when a Slurm controller answers here; raises NoscratchError otherwise, before any job is sent."""
    needed = "The profile profiles/slurm hands jobs to a Slurm cluster"
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        raise NoscratchError(
            f"{needed}, and this host has no sbatch and scontrol. Log in to a host that submits jobs, or run "
            "`snakemake --cores 8 all` here."
        )
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False, timeout=PATIENCE)
        answers, said = ping.returncode == 0 and "UP" in ping.stdout, " ".join((ping.stdout + ping.stderr).split())
    except subprocess.TimeoutExpired:  # it looks for a controller on the network for a minute and more
        answers, said = False, f"nothing in {PATIENCE} s"
    if not answers:
        raise NoscratchError(
            f"{needed}, and its controller does not answer (`scontrol ping`: {said}). Wait for it, or run "
            "`snakemake --cores 8 all` here."
        )


def queue_again() -> bool:
    """Put the Slurm job that this process is part of back into the queue, as it was submitted; was it done?

    Not where there is none, nor one that is being cancelled or is out of time: whoever submitted it decides there.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    state = subprocess.run(
        ["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, text=True, check=False
    )
    if state.stdout.strip() != "RUNNING":
        return False
    return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
