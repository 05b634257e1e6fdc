"""Private keys (ECDSA P-256) and signing requests. A key is made where it is used and never leaves that directory.

P-256 because gRPC's TLS refuses Ed25519 certificates, and every client of the REST interface knows it.
"""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pki.files import PRIVATE, write_new


class KeyFileError(Exception):
    """A private key file can not be used. The text says what to do."""


class RequestError(ValueError):
    """A signing request is malformed, not signed by its own key, or for a key that we do not certify."""


def ensure_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in `path`, made if there is none; on disk before it is used for anything. Raises KeyFileError."""
    with suppress(FileExistsError):
        write_new(path, key_pem(ec.generate_private_key(ec.SECP256R1())), PRIVATE)
    return read_key(path)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises FileNotFoundError, or KeyFileError for a file that others may read or that holds no P-256 key."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise KeyFileError(
            f"private key {path} may be read by others (mode {mode:04o}): chmod 600 it if nobody can have read it"
        )
    return _parse_key(path, path.read_bytes())


def signing_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A PEM request that names nobody: who the certificate is for is decided by who signs it."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def requested_key(request_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The one thing we take from a request. Raises RequestError."""
    try:
        request = x509.load_pem_x509_csr(request_pem)
        key, proven = request.public_key(), request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RequestError(f"malformed signing request: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestError("signing request: the key must be ECDSA P-256")
    if not proven:
        raise RequestError("signing request: not signed by the key it is for")
    return key


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _parse_key(path: Path, pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} holds no private key: restore it") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeyFileError(f"{path} holds no P-256 key: restore it")
    return key
