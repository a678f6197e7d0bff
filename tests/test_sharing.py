"""Results through a DVC remote: pushed here, pulled there, nothing runs; what a remote lacks is named."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from checkout import Checkout

pytestmark = pytest.mark.filterwarnings("ignore")  # of the test server's own dependencies
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
MADE = ("data/raw", "data/prepared", "data/runs", "reports", "public")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server on this machine, with one bucket."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="results")
    yield address
    running.stop()


def with_remote(checkout: Checkout, server: str, bucket: str) -> None:
    checkout.dvc("remote", "add", "--force", "--local", "s3", f"s3://{bucket}/dvc")
    checkout.dvc("remote", "modify", "--local", "s3", "endpointurl", server)


def test_through_s3_and_nothing_trains(by_dvc: Checkout, server: str, tmp_path: Path) -> None:
    with_remote(by_dvc, server, "results")
    by_dvc.dvc("push", "--remote", "s3", **KEYS)
    clone = by_dvc.clone(tmp_path / "clone")
    with_remote(clone, server, "results")
    clone.dvc("pull", "--remote", "s3", **KEYS)
    clone.noscratch("sync")
    said = clone.noscratch("repro").stdout
    assert "4 done" in said
    assert not list((clone.root / "data").glob("logs/*")), "a job ran"
    assert clone.files(*MADE) == by_dvc.files(*MADE)
    assert clone.run("git", "status", "--porcelain").stdout == ""


def test_a_remote_without_a_bucket_or_rights_is_named_and_nothing_lost(
    by_dvc: Checkout, server: str, tmp_path: Path
) -> None:
    before = by_dvc.files(*MADE)
    with_remote(by_dvc, server, "absent")
    done = by_dvc.dvc("push", "--remote", "s3", check=False, **KEYS)
    assert done.returncode != 0
    assert "absent" in done.stderr or "bucket" in done.stderr.lower()
    (tmp_path / "file").write_text("no folder")
    by_dvc.dvc("remote", "add", "--force", "--local", "broken", str(tmp_path / "file" / "below"))
    done = by_dvc.dvc("push", "--remote", "broken", check=False)
    assert done.returncode != 0
    assert "ERROR" in done.stderr
    assert by_dvc.files(*MADE) == before


@pytest.fixture
def small_remote(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory, to hold a remote; `remount` changes its size and rights."""
    folder = tmp_path / "remote"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount a file system in memory")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    ("options", "said"), [("size=256k", "No space left on device"), ("size=1g,ro", "Read-only file system")]
)
def test_a_remote_without_space_or_rights_loses_nothing(
    by_dvc: Checkout, small_remote: Path, options: str, said: str
) -> None:
    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(small_remote)], check=True)

    before = by_dvc.files(*MADE)
    by_dvc.dvc("remote", "add", "--force", "--local", "small", str(small_remote))
    remount(options)
    done = by_dvc.dvc("push", "--remote", "small", check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert by_dvc.files(*MADE) == before
    remount("size=1g,rw")
    by_dvc.dvc("push", "--remote", "small")
    for path in small_remote.rglob("*"):
        if path.is_file() and path.suffix != ".tmp":  # what DVC did not end the first time keeps such a name
            digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            assert path.parent.name + path.name.removesuffix(".dir") == digest
    assert "in sync" in by_dvc.dvc("status", "--cloud", "--remote", "small").stdout


def test_dvc_lock_merges(by_dvc: Checkout, tmp_path: Path) -> None:
    """By git alone where two branches changed different entries; else by either side and a run that trains nothing."""
    checkout = Checkout(Path(shutil.copytree(by_dvc.root, tmp_path / "copy", symlinks=True)))
    for branch, module in (("tasks", "tasks/listops"), ("judge", "results/judge"), ("flags", "results/flags")):
        checkout.run("git", "checkout", "--quiet", "-b", branch, "main")
        with (checkout.root / f"src/noscratch/{module}.py").open("a") as file:
            file.write(f"# Changed on branch {branch}.\n")  # results stay what they are
        checkout.dvc("commit", "--force", "--quiet")
        checkout.run("git", "commit", "--quiet", "--all", "--message", branch)
        assert "dvc.lock" in checkout.run("git", "show", "--stat", "--format=").stdout
    jobs, logs = checkout.jobs(), checkout.files("data/logs")

    checkout.run("git", "merge", "--quiet", "--no-edit", "tasks")
    assert "up to date" in checkout.dvc("status").stdout

    # `publish` read src/noscratch/results on both sides.
    assert checkout.run("git", "merge", "--quiet", "--no-edit", "judge", check=False).returncode == 1
    assert checkout.run("git", "diff", "--name-only", "--diff-filter=U").stdout.split() == ["dvc.lock"]
    checkout.run("git", "checkout", "--quiet", "--ours", "dvc.lock")
    checkout.run("git", "commit", "--quiet", "--all", "--no-edit")
    assert "up to date" not in checkout.dvc("status").stdout
    checkout.dvc("repro", "--quiet")
    assert "up to date" in checkout.dvc("status").stdout
    assert checkout.run("git", "status", "--porcelain").stdout == " M dvc.lock\n"
    assert checkout.jobs() == jobs
    assert checkout.files("data/logs") == logs
