"""model.sig: signed files, and every way in which a signature is not one for these files."""

import base64
import json

import pytest

from infopt.runtime.errors import ArtifactUntrusted
from infopt.runtime.signature_file import check_bundle, write_bundle

pytest.importorskip("cryptography")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

DIGESTS = {"manifest.json": "11" * 32, "plans/a.json": "22" * 32, "plans-b.json": "33" * 32}


def write_keys(folder, key, name="key"):
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    pem = serialization.Encoding.PEM
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem, form))
    return private, public


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_signed_and_verified(tmp_path, curve):
    private, public = write_keys(tmp_path, ec.generate_private_key(curve))
    text = write_bundle("model", DIGESTS, private, None)
    check_bundle(text, DIGESTS, public)
    _, other = write_keys(tmp_path, ec.generate_private_key(curve), "other")
    with pytest.raises(ArtifactUntrusted, match=r"not by the key other.pub.pem"):
        check_bundle(text, DIGESTS, other)


def test_the_form_is_that_of_openssf_model_signing(tmp_path):
    private, _ = write_keys(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    bundle = json.loads(write_bundle("model", DIGESTS, private, None))
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert set(bundle) == {"mediaType", "verificationMaterial", "dsseEnvelope"}
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://model_signing/signature/v1.0"
    assert "model.sig" in statement["predicate"]["serialization"]["ignore_paths"]
    names = [r["name"] for r in statement["predicate"]["resources"]]
    assert names == sorted(DIGESTS)


@pytest.fixture
def signed(tmp_path):
    private, public = write_keys(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    return write_bundle("model", DIGESTS, private, None), public


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update({"plans/a.json": "44" * 32}), r"plans/a.json: expected sha256 2222"),
        (lambda d: d.pop("plans/a.json"), "no such file"),
        (lambda d: d.update({"extra": "55" * 32}), "extra: expected sha256 none"),
    ],
)
def test_other_files_than_were_signed(signed, change, message):
    text, public = signed
    digests = dict(DIGESTS)
    change(digests)
    with pytest.raises(ArtifactUntrusted, match=message):
        check_bundle(text, digests, public)


def test_a_changed_signature_file(signed):
    text, public = signed
    for broken in ("", "{}", "[]", text[:-9], text.replace("v0.3", "v0.2"), "[" * 100_000):
        with pytest.raises(ArtifactUntrusted):
            check_bundle(broken, DIGESTS, public)
    bundle = json.loads(text)
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    other = payload.replace(b"2222", b"2223")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(other).decode()
    with pytest.raises(ArtifactUntrusted, match="not by the key"):
        check_bundle(json.dumps(bundle), DIGESTS, public)
    bundle["dsseEnvelope"]["signatures"] *= 2
    with pytest.raises(ArtifactUntrusted, match="expected a sigstore bundle"):
        check_bundle(json.dumps(bundle), DIGESTS, public)


def test_keys_of_another_kind(tmp_path, signed):
    text, _ = signed
    private, public = write_keys(tmp_path, ed25519.Ed25519PrivateKey.generate(), "ed")
    with pytest.raises(ArtifactUntrusted, match=r"expected a key on one of \['secp256r1'"):
        write_bundle("model", DIGESTS, private, None)
    with pytest.raises(ArtifactUntrusted, match=r"expected a key on one of"):
        check_bundle(text, DIGESTS, public)
    with pytest.raises(ArtifactUntrusted, match="expected a PEM public key"):
        check_bundle(text, DIGESTS, private)
