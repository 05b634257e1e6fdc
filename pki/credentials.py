"""What a daemon proves itself with: `cert.key`, `cert.pem` and `ca.pem` in one directory.

Whoever opens a TLS connection or port loads them through here, so that a certificate that can not work is one clear
error with the next step in it, before anything is dialled. The key stays when the certificate is replaced: a crash
between the two writes leaves a pair that fits.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from pki.authority import CA_FILE, LIFETIME_DAYS, Authority
from pki.files import PUBLIC, write_atomic
from pki.identity import Identity, Role, parse_identity
from pki.key import KeyFileError, ensure_key, key_pem, read_key, signing_request

KEY_FILE = "cert.key"
CERTIFICATE_FILE = "cert.pem"

NEXT_STEP = {
    Role.AGENT: 'run "tepui agent join" with a new token',
    Role.MASTER: 'run "tepui master init"',
    Role.ADMIN: "ask whoever runs the cluster for a new certificate",
}


class CredentialError(Exception):
    """The credentials can not be used. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """`key`, `chain` and `ca` are PEM."""

    key: bytes = field(repr=False)
    chain: bytes = field(repr=False)
    ca: bytes = field(repr=False)
    identity: Identity
    not_before: datetime
    not_after: datetime


def load_credentials(directory: Path, role: Role = Role.AGENT, now: datetime | None = None) -> Credentials:
    """Raises CredentialError."""
    try:
        key = read_key(directory / KEY_FILE)
        chain, ca = (directory / CERTIFICATE_FILE).read_bytes(), (directory / CA_FILE).read_bytes()
        return check(key, chain, ca, role, now or datetime.now(UTC))
    except FileNotFoundError as error:
        raise CredentialError(f"{error.filename} is missing: {NEXT_STEP[role]}") from error
    except KeyFileError as error:
        raise CredentialError(f"{error}, else remove it and {NEXT_STEP[role]}") from error
    except ValueError as error:
        raise CredentialError(f"{directory / CERTIFICATE_FILE}: {error}: {NEXT_STEP[role]}") from error


def issue_to(
    directory: Path, authority: Authority, identity: Identity, hosts: Sequence[str] = (), days: float = LIFETIME_DAYS
) -> Credentials:
    """Credentials from an authority at hand, as `tepui master init` needs them; replaces those that were there."""
    key = ensure_key(directory / KEY_FILE)
    chain = authority.issue(signing_request(key), identity, days, hosts)
    save(directory, chain, authority.pem)
    return load_credentials(directory, identity.role)


def save(directory: Path, chain: bytes, ca: bytes) -> None:
    """Beside the key, which is there already."""
    write_atomic(directory / CA_FILE, ca, PUBLIC)
    write_atomic(directory / CERTIFICATE_FILE, chain, PUBLIC)


def renewal_due(credentials: Credentials, now: datetime) -> bool:
    """Less than a third of the validity remains: time for several attempts before it matters."""
    return credentials.not_after - now < (credentials.not_after - credentials.not_before) / 3


def server_context(directory: Path, minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """For the ports whose clients have no certificate: enrolment and REST. Load the credentials first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = minimum
    context.load_cert_chain(directory / CERTIFICATE_FILE, directory / KEY_FILE)
    return context


def check(key: ec.EllipticCurvePrivateKey, chain: bytes, ca: bytes, role: Role, now: datetime) -> Credentials:
    """What a certificate must be to be of use with this key. Raises ValueError that says what it is instead."""
    certificate, issuer = x509.load_pem_x509_certificate(chain), x509.load_pem_x509_certificate(ca)
    identity = certificate_identity(certificate)
    if identity.role != role:
        raise ValueError(f"is for {identity.uri}, not for a role of {role}")
    if certificate.public_key() != key.public_key():
        raise ValueError("is for another key")
    if not _issued_by(certificate, issuer):
        raise ValueError("was issued by another authority than the one in " + CA_FILE)
    _check_time(certificate, now)
    return Credentials(
        key_pem(key), chain, ca, identity, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    )


def certificate_identity(certificate: x509.Certificate) -> Identity:
    """Raises ValueError when the certificate bears none or several."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise ValueError("bears no SPIFFE URI") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ValueError(f"bears {len(uris)} URIs where one SPIFFE URI is due")
    return parse_identity(uris[0])


def _issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_time(certificate: x509.Certificate, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        raise ValueError(f"is not valid before {certificate.not_valid_before_utc:%F %T} UTC (see to this node's clock)")
    if now >= certificate.not_valid_after_utc:
        raise ValueError(f"expired at {certificate.not_valid_after_utc:%F %T} UTC")
