"""A real Slurm of one node on this machine, without systemd, for the time of a test; `python tests/slurm.py` holds one.

munged, slurmctld and slurmd run in a scratch folder and listen on 127.0.0.1 alone. Only /etc/slurm/slurm.conf and
gres.conf lie outside it, as links: Snakemake's executor drops SLURM_CONF inside jobs. The node has two GPUs by name:
jobs get CUDA_VISIBLE_DEVICES, and no device stands behind it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
ETC = Path("/etc/slurm")
NODE = "node1"

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={port}
SlurmdPort={port_of_node}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MinJobAge=300
ReturnToService=2
SlurmctldTimeout=10
KillWait=2
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=16000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={node} Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=500
"""
# Any two character devices will do: nothing opens them.
GRES = "NodeName={node} Name=gpu File=/dev/tty[0-1]\n"


def missing() -> str:
    """Why no cluster can be started here; "" when one can."""
    lacking = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if lacking:
        return f"needs Slurm and munge installed: {', '.join(lacking)} missing"
    if os.geteuid() != 0:
        return "needs root: slurmctld and slurmd of this cluster run as root"
    if (ETC / "slurm.conf").exists() and not (ETC / "slurm.conf").is_symlink():
        return "a cluster of this machine's own stands in /etc/slurm"
    return ""


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@dataclass
class Cluster:
    """A running one-node cluster; its state, logs and spool lie in `folder`."""

    folder: Path

    def start(self) -> None:
        """Start the controller and the node, and wait until the node is idle."""
        self.start_controller()
        self._run("slurmd", "-N", NODE, "-f", str(self.folder / "slurm.conf"))
        self._until(lambda: "idle" in self.show("sinfo", "--noheader", "--format=%T"), "the node is idle")

    def start_controller(self) -> None:
        """Start slurmctld (again) with the state that stands in the folder."""
        self._run("slurmctld", "-f", str(self.folder / "slurm.conf"))

    def stop_controller(self) -> None:
        """End slurmctld, which saves its state first: after SIGKILL it would start jobs of the last seconds again, and
        drain the node because they run there already."""
        self._kill("slurmctld", signal.SIGTERM)

    def stop(self) -> None:
        """End all jobs and daemons."""
        for job in self.jobs():
            self.show("scancel", "--signal=KILL", "--full", job)
        for program in ("slurmd", "slurmctld"):
            self._kill(program, signal.SIGTERM)

    def jobs(self, state: str = "PENDING,RUNNING,COMPLETING") -> list[str]:
        """Ids of the jobs in these states."""
        return self.show("squeue", "--noheader", "--format=%i", f"--states={state}").split()

    def show(self, *command: str) -> str:
        """Output of a Slurm command; "" where the controller does not answer."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self._environment())
        return done.stdout

    def node(self, state: str) -> None:
        """Set the node's state: drain, resume ..."""
        self._run("scontrol", "update", f"NodeName={NODE}", f"State={state}", "Reason=test")

    def _until(self, met: object, what: str, seconds: float = 60.0) -> None:
        assert callable(met)
        end = time.monotonic() + seconds
        while not met():
            if time.monotonic() > end:
                logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
                raise AssertionError(f"waited {seconds:g} s until {what}\n{logs}")
            time.sleep(0.1)

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, env=self._environment(), stdout=subprocess.DEVNULL)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf")}

    def _kill(self, program: str, number: signal.Signals) -> None:
        pid_file = self.folder / f"{program}.pid"
        if not pid_file.is_file():
            return
        pid = int(pid_file.read_text())
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        self._until(lambda: not _alive(pid), f"{program} has ended")
        pid_file.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def cluster(cpus: int = 2) -> Iterator[Cluster]:
    """A cluster that lives as long as the block; AssertionError with the daemons' logs when it does not start."""
    assert not missing(), missing()
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = os.uname().nodename
    text = CONF.format(host=host, node=NODE, folder=folder, cpus=cpus, port=_free(), port_of_node=_free())
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text(GRES.format(node=NODE))
    ETC.mkdir(exist_ok=True)
    links = [ETC / "slurm.conf", ETC / "gres.conf"]
    for link in links:
        link.unlink(missing_ok=True)
        link.symlink_to(folder / link.name)
    munge = _munge()
    running = Cluster(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        if munge is not None:
            munge.terminate()
            munge.wait()
        for link in links:
            link.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _munge() -> subprocess.Popen[bytes] | None:
    """Start munged unless one serves this machine already."""
    if subprocess.run(["munge", "--no-input"], capture_output=True, check=False).returncode == 0:
        return None
    subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "-m", "0755", "/run/munge"], check=True)
    process = subprocess.Popen(
        ["runuser", "-u", "munge", "--", "/usr/sbin/munged", "--foreground", "--pid-file=/run/munge/munged.pid"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 30
    while subprocess.run(["munge", "--no-input"], capture_output=True, check=False).returncode:
        assert time.monotonic() < end, "munged does not answer"
        time.sleep(0.1)
    return process


if __name__ == "__main__":
    with cluster() as held:
        print(f"A cluster of one node runs in {held.folder}; end this process to stop it.")
        with suppress(KeyboardInterrupt):
            signal.pause()
