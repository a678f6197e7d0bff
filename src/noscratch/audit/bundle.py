"""Signed bundles: an in-toto statement over the digests of the evidence, signed with ed25519; all of it offline.

A bundle is one JSON file, a DSSE envelope (https://github.com/secure-systems-lab/dsse, protocol v1) around an in-toto
Statement v1 (https://in-toto.io/Statement/v1): a subject with its sha256 for every file, and a predicate with the
commit and the files and folders that were named. `verify` fails for any byte that differs, in a file or in the bundle,
and for a file that a signed folder did not hold.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from noscratch.audit.digests import Digests
from noscratch.audit.git import GitError, commit_of
from noscratch.errors import NoscratchError
from noscratch.store import as_json

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:noscratch:evidence:v1"
PAYLOAD = "application/vnd.in-toto+json"
# What is signed where nothing is named: what the numbers were made from, and the numbers.
EVIDENCE = ("params.yaml", "dvc.lock", "claims", "reports", "data/raw", "data/prepared", "data/runs")
SHOWN = 20  # how many differing files an error lists


class BundleError(NoscratchError):
    """A key, a bundle or a file that does not fit."""


def make_key(path: Path) -> Path:
    """Write a private key (PEM, PKCS#8, mode 0600) at `path` and its public half at `path`.pub, which is returned."""
    public = path.with_name(f"{path.name}.pub")
    for place in (path, public):
        if place.exists():
            raise BundleError(f"{place}: a key is never overwritten, and there is one. Choose another name.")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    public.write_bytes(_public_pem(key.public_key()))
    return public


def sign(root: Path, paths: Sequence[str], key: Path, out: Path) -> int:
    """Sign the files and folders `paths` below `root` (EVIDENCE, as far as it is there, if none); returns the number
    of files. The bundle is written at `out`."""
    private = _private_key(key)
    named = list(paths) or [name for name in EVIDENCE if (root / name).exists()]
    files = _files(root, named)
    if not files:
        raise BundleError(f"A bundle signs at least one file; {root} has none of {', '.join(EVIDENCE)}. Name some.")
    if out.resolve() in {path.resolve() for path in files.values()} or any(
        out.resolve().is_relative_to((root / name).resolve()) for name in named
    ):
        raise BundleError(f"{out}: a bundle lies outside of what it signs. Write it elsewhere (--to).")
    digests = Digests().of(files.values())
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digests[path]}} for name, path in files.items()],
        "predicateType": PREDICATE,
        "predicate": {"commit": _commit(root), "paths": sorted(named)},
    }
    payload = as_json(statement)
    signature = private.sign(_encoded(payload))
    envelope = _envelope(payload, _key_id(private.public_key()), signature)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        temporary.write_bytes(envelope)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return len(files)


def verify(root: Path, bundle: Path, key: Path) -> Mapping[str, Any]:
    """The statement of a bundle, once the signature is that of `key` and every file below `root` is as signed.

    Raises BundleError that names what differs: the key, the bundle, or each file that is changed, missing or new.
    """
    public = _public_key(key)
    statement = _opened(bundle, public)
    signed = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    present = _files(root, [name for name in statement["predicate"]["paths"] if (root / name).exists()])
    wrong = [f"{name} is missing" for name in signed if name not in present]
    wrong += [f"{name} is new" for name in present if name not in signed]
    digests = Digests().of(path for name, path in present.items() if name in signed)
    for name, expected in signed.items():
        if name in present and digests[present[name]] != expected:
            wrong.append(f"{name} has sha256 {digests[present[name]]}, signed was {expected}")
    if wrong:
        more = f"\n(and {len(wrong) - SHOWN} more)" if len(wrong) > SHOWN else ""
        raise BundleError(
            f"{bundle}: every file is as it was signed; {len(wrong)} of {len(signed)} are not:\n"
            + "\n".join(sorted(wrong)[:SHOWN])
            + f"{more}\nTake back the signed files, or sign again what they are now."
        )
    return statement


# ---------------------------------------------------------------- the envelope


def _encoded(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding of type and payload."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _envelope(payload: bytes, key_id: str, signature: bytes) -> bytes:
    return as_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD,
            "signatures": [{"keyid": key_id, "sig": base64.b64encode(signature).decode()}],
        }
    )


def _opened(bundle: Path, public: Ed25519PublicKey) -> dict[str, Any]:
    """The statement in a bundle, its signature verified and its spelling the one that `sign` gives."""
    content = _read(bundle, "bundle")
    try:
        envelope = json.loads(content)
        payload = base64.b64decode(envelope["payload"], validate=True)
        [entry] = envelope["signatures"]
        signature = base64.b64decode(entry["sig"], validate=True)
        key_id = str(entry["keyid"])
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise BundleError(
            f"{bundle}: a bundle is the file that `noscratch sign` writes; this is none, or it was altered ({error!r})."
            " Get the bundle again."
        ) from None
    if key_id != _key_id(public):
        raise BundleError(
            f"{bundle}: it was signed by the key {key_id[:16]}; the key given is {_key_id(public)[:16]}. Give the "
            "public key of who signed it."
        )
    try:
        public.verify(signature, _encoded(payload))
    except InvalidSignature:
        raise BundleError(
            f"{bundle}: its signature is not that of its content; it was altered. Get it again."
        ) from None
    # Two spellings of one JSON or base64 text are one statement; only the one that was written passes.
    if _envelope(payload, key_id, signature) != content:
        raise BundleError(f"{bundle}: it is not spelt as it was written; it was altered. Get it again.")
    statement: dict[str, Any] = json.loads(payload)
    if statement["_type"] != STATEMENT or statement["predicateType"] != PREDICATE:
        raise BundleError(
            f"{bundle}: it holds a statement of the kind {statement['predicateType']}; expected {PREDICATE}. Verify it "
            "with the version that signed it."
        )
    return statement


# ---------------------------------------------------------------- keys and files


def _key_id(key: Ed25519PublicKey) -> str:
    """sha256 of the public key in DER."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _private_key(path: Path) -> Ed25519PrivateKey:
    content = _read(path, "private key")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BundleError(
            f"{path}: a private key is a PEM file without a password, as `noscratch keygen` writes; this is not "
            f"({error}). Give such a file."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(
            f"{path}: bundles are signed with ed25519; this is another kind of key. Use `noscratch keygen`."
        )
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    content = _read(path, "public key")
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(
            f"{path}: a public key is the PEM file KEY.pub that `noscratch keygen` writes; this is not ({error}). Give "
            "such a file."
        ) from None
    # PEM has more than one spelling too.
    if not isinstance(key, Ed25519PublicKey) or _public_pem(key) != content:
        raise BundleError(f"{path}: this is not the public half of an ed25519 key as it was written. Get it again.")
    return key


def _read(path: Path, what: str) -> bytes:
    if not path.is_file():
        raise BundleError(f"{path}: there is no such {what}. Check its path.")
    return path.read_bytes()


def _files(root: Path, named: Iterable[str]) -> dict[str, Path]:
    """Every file below the named files and folders, by its path from `root`, sorted."""
    found = {}
    for name in named:
        place = root / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BundleError(f"{name}: what is signed lies in the checkout and is named from there. Name it so.")
        if not place.exists():
            raise BundleError(f"{name}: there is no such file or folder in {root}. Check its path.")
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                found[path.relative_to(root).as_posix()] = path
    return dict(sorted(found.items()))


def _commit(root: Path) -> str | None:
    """The commit that is checked out, None outside git."""
    try:
        return commit_of(root)
    except GitError:
        return None
