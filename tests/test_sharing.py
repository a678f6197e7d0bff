"""Results through a DVC remote: pushed here, pulled there, nothing runs; what a remote lacks is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from checkout import Checkout

pytestmark = [
    pytest.mark.xdist_group("engines"),
    pytest.mark.filterwarnings("ignore"),  # of the test server's own dependencies
]
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
