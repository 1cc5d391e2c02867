"""Ed25519 (RFC 8032): keys in PEM, and signatures of manifests as one line of text. Pure but for the randomness of a new key.

A signature file has exactly one form for a key and a signature, so no byte of it can change unseen:

    headrace-ed25519 <key id, 16 hex digits> <signature, 128 hex digits>

It is over ``PURPOSE`` and the bytes of manifest.json, so nothing else that this key ever signs can be taken for a manifest.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from schemas.errors import BundleError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["holds", "key_id", "new_key", "public_of", "read_signature", "sign"]

PURPOSE = b"headrace bundle manifest v1\0"
LINE = re.compile(rb"headrace-ed25519 ([0-9a-f]{16}) ([0-9a-f]{128})\n")


def new_key() -> bytes:
    """A private key, PKCS 8 in PEM, not encrypted."""
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())


def public_of(private: bytes) -> bytes:
    """The public half in PEM. Raises BundleError where ``private`` is no Ed25519 key."""
    from cryptography.hazmat.primitives import serialization as forms

    return _private(private).public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)


def key_id(public: bytes) -> str:
    """The first 16 hex digits of the sha256 of the raw public key. Raises BundleError where ``public`` is no Ed25519 key."""
    return hashlib.sha256(_public(public).public_bytes_raw()).hexdigest()[:16]


def sign(private: bytes, manifest: bytes) -> bytes:
    """The signature file of ``manifest``."""
    signature = _private(private).sign(PURPOSE + manifest)
    return f"headrace-ed25519 {key_id(public_of(private))} {signature.hex()}\n".encode()


def read_signature(line: bytes) -> tuple[str, bytes]:
    """(key id, 64 bytes) of a signature file. Raises BundleError where it is none."""
    found = LINE.fullmatch(line)
    if found is None:
        raise BundleError("the signature is not one line 'headrace-ed25519 KEY SIGNATURE'", hint="fetch or train the bundle again")
    return found[1].decode(), bytes.fromhex(found[2].decode())


def holds(public: bytes, manifest: bytes, signature: bytes) -> bool:
    """Whether the holder of that key signed exactly these bytes."""
    from cryptography.exceptions import InvalidSignature

    try:
        _public(public).verify(signature, PURPOSE + manifest)
    except InvalidSignature:
        return False
    return True


def _private(pem: bytes) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BundleError(f"a signing key cannot be read: {error}", hint="it is an Ed25519 key in PEM, without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError("a signing key is not of Ed25519", hint="`headrace keys rotate` makes one")
    return key


def _public(pem: bytes) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(f"a public key cannot be read: {error}", hint="it is an Ed25519 key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError("a public key is not of Ed25519", hint="headrace signs with Ed25519 only")
    return key
