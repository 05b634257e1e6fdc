"""The authority, identities, keys and the files they live in."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store
from hypothesis import given
from hypothesis import strategies as st

from pki.authority import Authority, AuthorityError, fingerprint
from pki.files import PRIVATE, PUBLIC, write_atomic, write_new
from pki.identity import Identity, Role, parse_identity
from pki.key import KeyFileError, RequestError, ensure_key, key_pem, read_key, requested_key, signing_request

AGENT = Identity(Role.AGENT, "node1")
MASTER = Identity(Role.MASTER, "m1")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("ca"))


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def issued(
    authority: Authority,
    identity: Identity,
    days: float = 90,
    hosts: tuple[str, ...] = (),
    now: datetime | None = None,
) -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority.issue(signing_request(new_key()), identity, days, hosts, now))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def usages(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_the_authority_is_a_p256_ca_that_signs_leaves_only(authority: Authority) -> None:
    extensions = authority.certificate.extensions
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert basic.critical and basic.value == x509.BasicConstraints(ca=True, path_length=0)
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature
    identifier = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == identifier
    lifetime = authority.certificate.not_valid_after_utc - authority.certificate.not_valid_before_utc
    assert timedelta(days=3650) <= lifetime < timedelta(days=3651)


def test_an_agents_certificate_is_for_clients_and_bears_its_uri_only(authority: Authority) -> None:
    certificate = issued(authority, AGENT)
    assert usages(certificate) == {ExtendedKeyUsageOID.CLIENT_AUTH}
    assert list(names(certificate)) == [x509.UniformResourceIdentifier("spiffe://tepui.internal/agent/node1")]
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature


def test_a_masters_certificate_is_for_servers_too_and_bears_its_hosts(authority: Authority) -> None:
    certificate = issued(authority, MASTER, hosts=("192.0.2.7", "2001:db8::7", "api.example.org"))
    assert usages(certificate) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert names(certificate).get_values_for_type(x509.DNSName) == [
        "master.tepui.internal",
        "localhost",
        "api.example.org",
    ]
    assert names(certificate).get_values_for_type(x509.IPAddress) == [
        ip_address("192.0.2.7"),
        ip_address("2001:db8::7"),
    ]
    assert names(certificate).get_values_for_type(x509.UniformResourceIdentifier) == [MASTER.uri]


def test_identifiers_chain_and_serials_differ(authority: Authority) -> None:
    first, second = issued(authority, AGENT), issued(authority, AGENT)
    identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert first.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == identifier
    assert first.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest != identifier
    assert first.serial_number != second.serial_number
    first.verify_directly_issued_by(authority.certificate)


def test_a_strict_verifier_accepts_the_chain(authority: Authority) -> None:
    builder = PolicyBuilder().store(Store([authority.certificate]))
    server = builder.build_server_verifier(x509.DNSName("master.tepui.internal"))
    assert len(server.verify(issued(authority, MASTER), [])) == 2
    client = builder.build_client_verifier()
    assert client.verify(issued(authority, AGENT), []).subjects == [x509.UniformResourceIdentifier(AGENT.uri)]


def test_validity_is_backdated_for_slow_clocks_and_ends_with_the_authority(authority: Authority) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    certificate = issued(authority, AGENT, now=now)
    assert certificate.not_valid_before_utc == now - timedelta(minutes=5)
    assert certificate.not_valid_after_utc == now + timedelta(days=90)
    endless = issued(authority, AGENT, days=100_000)
    assert endless.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_names_in_the_request_are_ignored(authority: Authority) -> None:
    key = new_key()
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "master")]))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(MASTER.uri)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = authority.issue(request.public_bytes(serialization.Encoding.PEM), AGENT)
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == "CN=node1"
    assert names(certificate).get_values_for_type(x509.UniformResourceIdentifier) == [AGENT.uri]
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


def test_a_request_signed_by_another_key_is_refused() -> None:
    """The signature is replaced by a valid one of another request."""
    genuine, other = (x509.load_pem_x509_csr(signing_request(new_key())) for _ in range(2))
    der = genuine.public_bytes(serialization.Encoding.DER)
    forged = der.replace(genuine.tbs_certrequest_bytes, other.tbs_certrequest_bytes)
    pem = x509.load_der_x509_csr(forged).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(RequestError, match="not signed by the key it is for"):
        requested_key(pem)


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
    ],
    ids=["ed25519", "rsa", "p384"],
)
def test_only_p256_keys_are_certified(
    key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
) -> None:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, algorithm)
    with pytest.raises(RequestError, match="P-256"):
        requested_key(request.public_bytes(serialization.Encoding.PEM))


@given(st.binary(max_size=400), st.integers(0, 400))
def test_a_damaged_request_is_one_kind_of_error(noise: bytes, offset: int) -> None:
    pem = signing_request(KEY)
    damaged = pem[:offset] + noise + pem[offset + len(noise) :]
    try:
        requested_key(damaged)
    except RequestError:
        return
    assert requested_key(damaged) == KEY.public_key()


KEY = new_key()


def test_another_domain_and_hosts_of_an_agent_are_refused(authority: Authority) -> None:
    request = signing_request(new_key())
    with pytest.raises(ValueError, match=r"domain is tepui\.internal"):
        authority.issue(request, Identity(Role.AGENT, "node1", "example.org"))
    with pytest.raises(ValueError, match="only a master's"):
        authority.issue(request, AGENT, hosts=("192.0.2.1",))


def test_files_modes_and_loading(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        created = Authority.create(tmp_path / "pki", "example.org")
    finally:
        os.umask(before)
    assert mode(tmp_path / "pki") == 0o700
    assert mode(tmp_path / "pki/ca.key") == 0o600
    assert mode(tmp_path / "pki/ca.pem") == 0o644
    loaded = Authority.load(tmp_path / "pki")
    assert (loaded.pem, loaded.domain) == (created.pem, "example.org")
    assert loaded.fingerprint == sha256(created.certificate.public_bytes(serialization.Encoding.DER)).digest()
    assert sorted(os.listdir(tmp_path / "pki")) == ["ca.key", "ca.pem"]
    assert key_pem(created.key).decode() not in repr(created)


def test_an_authority_is_never_replaced(tmp_path: Path) -> None:
    before = Authority.create(tmp_path)
    with pytest.raises(AuthorityError, match="there is an authority already"):
        Authority.create(tmp_path)
    assert fingerprint(Authority.load(tmp_path).certificate) == before.fingerprint


def test_a_bad_domain_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a DNS name"):
        Authority.create(tmp_path / "pki", "Bad Domain/")
    assert not (tmp_path / "pki").exists()


def test_what_loading_says_of_missing_damaged_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match=r"ca\.pem is missing: run \"tepui master init\""):
        Authority.load(tmp_path)
    Authority.create(tmp_path / "a")
    Authority.create(tmp_path / "b")
    (tmp_path / "a/ca.pem").write_bytes((tmp_path / "b/ca.pem").read_bytes())
    with pytest.raises(AuthorityError, match="do not belong together"):
        Authority.load(tmp_path / "a")
    (tmp_path / "a/ca.pem").write_text("no")
    with pytest.raises(AuthorityError, match="is not a certificate"):
        Authority.load(tmp_path / "a")
    (tmp_path / "b/ca.key").chmod(0o640)
    with pytest.raises(KeyFileError, match="mode 0640"):
        Authority.load(tmp_path / "b")


def test_a_key_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "node" / "cert.key"
    first = ensure_key(path)
    assert mode(path) == 0o600 and mode(path.parent) == 0o700
    assert key_pem(ensure_key(path)) == key_pem(first)
    path.chmod(0o604)
    with pytest.raises(KeyFileError, match="may be read by others"):
        read_key(path)
    path.chmod(0o600)
    path.write_text("not a key")
    with pytest.raises(KeyFileError, match="holds no private key"):
        read_key(path)


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_new(path, b"one", PRIVATE)
    with pytest.raises(FileExistsError):
        write_new(path, b"two", PRIVATE)
    write_atomic(path, b"three", PUBLIC)
    assert (path.read_bytes(), mode(path)) == (b"three", 0o644)
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path, b"x", PUBLIC)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "name", ["", "..", ".a", "a.", "a..b", "a/b", "A", "node 1", "node1\n", "-a", "a_", "é", "n" * 64, "a\x00"]
)
def test_names_that_are_no_identity(name: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 63"):
        Identity(Role.AGENT, name)


@pytest.mark.parametrize("name", ["a", "node1", "rack2-node1", "n1.example.org", "a_b", "xn--p1ai", "n" * 63])
def test_identities_and_uris_are_the_same_thing(name: str) -> None:
    identity = Identity(Role.AGENT, name)
    assert parse_identity(identity.uri) == identity


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://tepui.internal/agent",
        "spiffe://tepui.internal/agent/",
        "spiffe://tepui.internal/agent/a/b",
        "spiffe://tepui.internal/root/a",
        "spiffe://tepui.internal/AGENT/a",
        "spiffe://tepui.internal:80/agent/a",
        "spiffe://x@tepui.internal/agent/a",
        "spiffe:///agent/a",
        "SPIFFE://tepui.internal/agent/a",
        "https://tepui.internal/agent/a",
        "spiffe://tepui.internal/agent/a?x",
        "spiffe://tepui.internal/agent/%61",
        "spiffe://tepui.internal/agent/a\n",
        " spiffe://tepui.internal/agent/a",
    ],
)
def test_uris_that_are_no_identity(uri: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_identity(uri)


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    for candidate in (text, f"spiffe://tepui.internal/agent/{text}", f"spiffe://{text}/agent/a"):
        try:
            assert parse_identity(candidate).uri == candidate
        except ValueError as error:
            assert "must be" in str(error)
