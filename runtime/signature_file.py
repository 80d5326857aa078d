"""model.sig: an artifact signed with an elliptic-curve key, in the OpenSSF Model Signing form.

A sigstore bundle with a DSSE envelope around an in-toto statement that lists name and sha256 of
every file but the signature itself (model_signing v1.0). The tool of that project verifies what is
written here, and what it writes with `sign key` is accepted. Its library is not used: it hashes
files by their path, so what it verified need not be what was loaded, and it brings some twenty
packages, network clients among them; this needs `cryptography` alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infopt.runtime.errors import ArtifactUntrusted, PlanError
from infopt.runtime.records import load_json

NAME = "model.sig"
_MEDIA = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_IGNORED = [".git", ".gitattributes", ".github", ".gitignore", NAME]
_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


def write_bundle(name: str, digests: Mapping[str, str], key: Path, password: bytes | None) -> str:
    """The text of model.sig for files with these sha256, signed with a PEM private key.

    Raises ArtifactUntrusted for a key of another kind.
    """
    ec, hashes, serialization = _cryptography()
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password)
    except (ValueError, TypeError) as error:
        raise ArtifactUntrusted(f"{key}: expected a PEM private key, found: {error}") from None
    public = private.public_key()
    payload = json.dumps(_statement(name, digests), indent=2).encode()
    algorithm = ec.ECDSA(_hash_of(hashes, public, key))
    found = private.sign(_encoded(payload), algorithm)
    return json.dumps(
        {
            "mediaType": _MEDIA,
            "verificationMaterial": {
                "publicKey": {"hint": _hint(serialization, public)},
                "tlogEntries": [],
            },
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": _PAYLOAD,
                "signatures": [{"sig": base64.b64encode(found).decode(), "keyid": ""}],
            },
        },
        separators=(",", ":"),
    )


def check_bundle(text: str, digests: Mapping[str, str], key: Path) -> None:
    """Raises ArtifactUntrusted unless `text` is a signature by `key` (a PEM public key) for exactly
    the files with these sha256."""
    ec, hashes, serialization = _cryptography()
    from cryptography.exceptions import InvalidSignature

    try:
        public = serialization.load_pem_public_key(key.read_bytes())
    except ValueError as error:
        raise ArtifactUntrusted(f"{key}: expected a PEM public key, found: {error}") from None
    algorithm = ec.ECDSA(_hash_of(hashes, public, key))
    payload, signature = _envelope(text)
    try:
        public.verify(signature, _encoded(payload), algorithm)
    except InvalidSignature:
        raise ArtifactUntrusted(f"{NAME}: the signature is not by the key {key.name}") from None
    signed = _signed_digests(payload)
    for name in sorted(signed.keys() | digests.keys()):
        if signed.get(name) != digests.get(name):
            raise ArtifactUntrusted(
                f"{NAME}: {name}: expected sha256 {signed.get(name, 'none: it was not signed')}, "
                f"found {digests.get(name, 'no such file')}"
            )


def _statement(name: str, digests: Mapping[str, str]) -> dict[str, Any]:
    resources = [
        {"name": file, "algorithm": "sha256", "digest": digest}
        for file, digest in sorted(digests.items())
    ]
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": _root(resources)}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "resources": resources,
            "serialization": {
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": _IGNORED,
                "method": "files",
            },
        },
    }


def _root(resources: list[dict[str, str]]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(r["digest"]) for r in resources)).hexdigest()


def _encoded(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)


def _envelope(text: str) -> tuple[bytes, bytes]:
    """Payload and signature of a bundle."""
    try:
        bundle = load_json(text)
        envelope = bundle["dsseEnvelope"]
        (only,) = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(only["sig"], validate=True)
        known = bundle["mediaType"] == _MEDIA and envelope["payloadType"] == _PAYLOAD
    except (PlanError, KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ArtifactUntrusted(f"{NAME}: expected a sigstore bundle, found: {error!r}") from None
    if not known:
        raise ArtifactUntrusted(f"{NAME}: expected {_MEDIA} around {_PAYLOAD}, found another form")
    return payload, signature


def _signed_digests(payload: bytes) -> dict[str, str]:
    """Name -> sha256 of every file a statement is for."""
    try:
        statement = load_json(payload.decode())
        found = statement["_type"], statement["predicateType"]
        method = statement["predicate"]["serialization"]
        resources = statement["predicate"]["resources"]
        (subject,) = statement["subject"]
        names = {r["name"]: r["digest"] for r in resources}
        hashed = {r["algorithm"] for r in resources} | {method["hash_type"]}
        root, whole = subject["digest"]["sha256"], _root(resources)
    except (PlanError, KeyError, TypeError, ValueError) as error:
        raise ArtifactUntrusted(f"{NAME}: expected a statement, found: {error!r}") from None
    if found != (_STATEMENT, _PREDICATE) or method["method"] != "files" or hashed != {"sha256"}:
        raise ArtifactUntrusted(
            f"{NAME}: expected {_PREDICATE} over whole files by sha256, "
            f"found {found[1]} over {method['method']} by {', '.join(sorted(map(str, hashed)))}"
        )
    if len(names) != len(resources) or root != whole:
        raise ArtifactUntrusted(f"{NAME}: the statement contradicts itself")
    return names


def _hint(serialization: Any, public: Any) -> str:
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()


def _hash_of(hashes: Any, public: Any, key: Path) -> Any:
    curve = getattr(getattr(public, "curve", None), "name", type(public).__name__)
    if curve not in _HASHES:
        raise ArtifactUntrusted(f"{key}: expected a key on one of {list(_HASHES)}, found {curve}")
    return getattr(hashes, _HASHES[curve])()


def _cryptography() -> tuple[Any, Any, Any]:
    try:
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise ArtifactUntrusted(
            "keys need the package cryptography: pip install 'infopt[signing]'"
        ) from None
    return ec, hashes, serialization
