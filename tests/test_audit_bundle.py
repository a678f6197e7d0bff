"""Signed bundles: what was signed passes, and any altered byte fails, wherever it is."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from noscratch.audit.bundle import BundleError, make_key, sign, verify
from noscratch.audit.digests import Digests
from noscratch.cli import app
from noscratch.store import sha256_of

FILES = {
    "reports/metrics.json": b'{"smoke": 1}\n',
    "reports/records/a/record.json": b"{}\n",
    "params.yaml": b"run: 1\n",
}


class Signed:
    """A checkout, its keys and a bundle of its evidence."""

    def __init__(self, root: Path) -> None:
        self.root = root / "checkout"
        for name, content in FILES.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.key, self.bundle = root / "key", root / "bundle.json"
        self.public = make_key(self.key)
        sign(self.root, [], self.key, self.bundle)

    def holds(self) -> bool:
        try:
            verify(self.root, self.bundle, self.public)
        except BundleError:
            return False
        return True


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    return Signed(tmp_path_factory.mktemp("signed"))


def test_what_was_signed_passes(signed: Signed) -> None:
    statement = verify(signed.root, signed.bundle, signed.public)
    assert {each["name"]: each["digest"]["sha256"] for each in statement["subject"]} == {
        name: sha256_of(signed.root / name) for name in FILES
    }
    assert signed.key.stat().st_mode & 0o777 == 0o600


def test_it_is_an_in_toto_statement_in_a_dsse_envelope(signed: Signed) -> None:
    """Recomputed here from the two specifications, without the module's own functions."""
    envelope = json.loads(signed.bundle.read_text())
    payload = base64.b64decode(envelope["payload"])
    assert json.loads(payload)["_type"] == "https://in-toto.io/Statement/v1"
    kind = envelope["payloadType"].encode()
    encoded = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])
    key = serialization.load_pem_public_key(signed.public.read_bytes())
    key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), encoded)  # type: ignore[union-attr, call-arg]


@pytest.mark.parametrize("part", ["bundle", "public"])
def test_any_altered_byte_of_bundle_or_key_fails(signed: Signed, part: str) -> None:
    path: Path = getattr(signed, part)
    before = path.read_bytes()
    try:
        for place in range(len(before)):
            altered = bytearray(before)
            altered[place] ^= 1 << (place % 8)
            path.write_bytes(altered)
            assert not signed.holds(), (
                f"byte {place} of {part}: {before[place : place + 1]!r} became {altered[place]:#x}"
            )
    finally:
        path.write_bytes(before)
    assert signed.holds()


@given(st.sampled_from(sorted(FILES)), st.data())
def test_any_altered_byte_of_a_file_fails(signed: Signed, name: str, data: st.DataObject) -> None:
    path, before = signed.root / name, FILES[name]
    altered = bytearray(before)
    altered[data.draw(st.integers(0, len(before) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(altered)
        with pytest.raises(BundleError, match=f"1 of 3 are not:\n{name} has sha256"):
            verify(signed.root, signed.bundle, signed.public)
    finally:
        path.write_bytes(before)


def test_missing_and_new_files_fail(tmp_path: Path) -> None:
    signed = Signed(tmp_path)
    (signed.root / "reports/metrics.json").rename(signed.root / "reports/other.json")
    with pytest.raises(BundleError, match=r"reports/metrics.json is missing\nreports/other.json is new"):
        verify(signed.root, signed.bundle, signed.public)
    (signed.root / "reports/other.json").rename(signed.root / "reports/metrics.json")
    assert signed.holds()
    (signed.root / "params.yaml").unlink()
    assert not signed.holds()


def test_only_the_signers_key_opens_it(signed: Signed, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    with pytest.raises(BundleError, match="it was signed by the key"):
        verify(signed.root, signed.bundle, other)


def test_keys_that_are_none(signed: Signed, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.write_bytes(b"no key")
    pair = rsa.generate_private_key(65537, 2048)
    foreign = tmp_path / "rsa"
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    foreign.write_bytes(pair.private_bytes(*private))
    locked = tmp_path / "locked"
    locked.write_bytes(
        pair.private_bytes(*private[:2], serialization.BestAvailableEncryption(b"password")),
    )
    out = tmp_path / "bundle.json"
    for key, said in (
        (tmp_path / "absent", "there is no such private key"),
        (nothing, "a private key is a PEM file without a password"),
        (locked, "a private key is a PEM file without a password"),
        (foreign, "bundles are signed with ed25519"),
        (signed.public, "a private key is a PEM file"),
    ):
        with pytest.raises(BundleError, match=said):
            sign(signed.root, [], key, out)
    for key, said in (
        (tmp_path / "absent", "there is no such public key"),
        (nothing, "a public key is the PEM file"),
        (signed.key, "a public key is the PEM file"),
    ):
        with pytest.raises(BundleError, match=said):
            verify(signed.root, signed.bundle, key)
    assert not out.exists()


def test_mistakes_in_what_is_signed(signed: Signed, tmp_path: Path) -> None:
    for paths, out, said in (
        (["nothing.txt"], tmp_path / "b", "there is no such file"),
        (["../key"], tmp_path / "b", "lies in the checkout"),
        (["reports"], signed.root / "reports/b.json", "outside of what it signs"),
        (["params.yaml"], signed.root / "params.yaml", "outside of what it signs"),
    ):
        with pytest.raises(BundleError, match=said):
            sign(signed.root, paths, signed.key, out)
    with pytest.raises(BundleError, match="at least one file"):
        sign(tmp_path, [], signed.key, tmp_path / "b")
    with pytest.raises(BundleError, match="never overwritten"):
        make_key(signed.key)
    assert signed.holds()


def test_the_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("run: 1\n")
    for arguments, said in (
        (["keygen", "key"], "key.pub"),
        (["sign", "--key", "key"], "signed 1 files: noscratch.intoto.json"),
        (["verify", "--key", "key.pub"], "1 files are as they were signed"),
    ):
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0
        assert said in done.output
    (tmp_path / "params.yaml").write_text("run: 2\n")
    assert isinstance(CliRunner().invoke(app, ["verify", "--key", "key.pub"]).exception, BundleError)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=6))
def test_digests_are_those_of_one_file_after_another(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("digests")
    paths = []
    for index, content in enumerate(contents):
        paths.append(folder / str(index))
        paths[-1].write_bytes(content)
    linked = folder / "linked"
    linked.hardlink_to(paths[0])
    digests = Digests(2)
    assert digests.of([*paths, linked]) == {path: sha256_of(path) for path in [*paths, linked]}
    assert digests.bytes_read == sum(map(len, contents))
