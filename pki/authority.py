"""The cluster's certificate authority: one self-signed ECDSA P-256 certificate that signs every other one directly.

Reads and writes `ca.pem` and `ca.key` in the directory it is given. The domain of the cluster stands in the CA's own
subject alternative name, so that whoever holds the certificate knows what names to expect. Subject and authority key
identifiers, BasicConstraints and KeyUsage are always there: TLS libraries differ in which of them they miss
(RFC 5280 section 4.2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from model.names import DEFAULT_DOMAIN
from pki.files import PRIVATE, PUBLIC, write_atomic, write_new
from pki.identity import Identity, Role, check_domain, server_name
from pki.key import key_pem, read_key, requested_key

CA_FILE = "ca.pem"
CA_KEY_FILE = "ca.key"
CA_LIFETIME = timedelta(days=3650)
LIFETIME_DAYS = 90
CLOCK_SKEW = timedelta(minutes=5)  # how far behind the clock of a peer may be

USAGES = {
    Role.MASTER: (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    Role.AGENT: (ExtendedKeyUsageOID.CLIENT_AUTH,),
    Role.ADMIN: (ExtendedKeyUsageOID.CLIENT_AUTH,),
}


class AuthorityError(Exception):
    """The authority's files are missing, damaged or already there. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    domain: str

    @staticmethod
    def create(directory: Path, domain: str = DEFAULT_DOMAIN) -> Authority:
        """Makes the directory (0700) too. Raises AuthorityError when there is an authority in it: never replaced."""
        check_domain(domain)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key, domain)
        try:
            write_new(directory / CA_KEY_FILE, key_pem(key), PRIVATE)
        except FileExistsError as error:
            raise AuthorityError(f"{directory / CA_KEY_FILE} exists: there is an authority already") from error
        write_atomic(directory / CA_FILE, certificate_pem(certificate), PUBLIC)
        return Authority(certificate, key, domain)

    @staticmethod
    def load(directory: Path) -> Authority:
        """Raises AuthorityError, or KeyFileError for a key that can not be used."""
        try:
            certificate = x509.load_pem_x509_certificate((directory / CA_FILE).read_bytes())
            key = read_key(directory / CA_KEY_FILE)
        except FileNotFoundError as error:
            raise AuthorityError(f'{error.filename} is missing: run "tepui master init"') from error
        except ValueError as error:
            raise AuthorityError(f"{directory / CA_FILE} is not a certificate: restore it from a backup") from error
        if certificate.public_key() != key.public_key():
            raise AuthorityError(f"{CA_FILE} and {CA_KEY_FILE} in {directory} do not belong together")
        return Authority(certificate, key, authority_domain(certificate))

    @property
    def pem(self) -> bytes:
        return certificate_pem(self.certificate)

    @property
    def fingerprint(self) -> bytes:
        return fingerprint(self.certificate)

    def issue(
        self,
        request_pem: bytes,
        identity: Identity,
        days: float = LIFETIME_DAYS,
        hosts: Sequence[str] = (),
        now: datetime | None = None,
    ) -> bytes:
        """A PEM certificate for the key of the request; every name in the request is ignored. `hosts` are further DNS
        names and IP addresses of a master. Raises RequestError, and ValueError for an identity of another domain."""
        if identity.domain != self.domain:
            raise ValueError(f"{identity.uri}: this authority's domain is {self.domain}")
        if hosts and identity.role != Role.MASTER:
            raise ValueError(f"{identity.uri}: only a master's certificate bears host names")
        begin = now or datetime.now(UTC)
        end = min(begin + timedelta(days=days), self.certificate.not_valid_after_utc)
        builder = _certificate(identity.name, requested_key(request_pem), begin - CLOCK_SKEW, end)
        builder = _describe_peer(builder, identity, hosts).issuer_name(self.certificate.subject)
        builder = builder.add_extension(_issuer_identifier(self.certificate), critical=False)
        return certificate_pem(builder.sign(self.key, hashes.SHA256()))


def fingerprint(certificate: x509.Certificate) -> bytes:
    return sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()


def certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def authority_domain(certificate: x509.Certificate) -> str:
    """The domain an authority's certificate speaks for. Raises AuthorityError when it is none of ours."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise AuthorityError("this is not the certificate of a Tepui authority: it names no domain") from error
    return uri.removeprefix("spiffe://")


def _self_signed(key: ec.EllipticCurvePrivateKey, domain: str) -> x509.Certificate:
    now = datetime.now(UTC)
    names = [x509.UniformResourceIdentifier(f"spiffe://{domain}")]
    builder = _certificate("Tepui CA", key.public_key(), now - CLOCK_SKEW, now + CA_LIFETIME)
    builder = builder.issuer_name(_subject("Tepui CA"))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
    )
    return builder.sign(key, hashes.SHA256())


def _certificate(name: str, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime) -> x509.CertificateBuilder:
    """What all certificates have in common."""
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _describe_peer(
    builder: x509.CertificateBuilder, identity: Identity, hosts: Sequence[str]
) -> x509.CertificateBuilder:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
    if identity.role == Role.MASTER:
        names += [_host(host) for host in dict.fromkeys((server_name(identity.domain), "localhost", *hosts))]
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(USAGES[identity.role]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _issuer_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _key_usage(digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
