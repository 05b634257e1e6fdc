"""Credentials on disk: what loading says of each way in which they can be wrong, and when a new one is due."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pki.authority import Authority
from pki.credentials import CredentialError, Credentials, issue_to, load_credentials, renewal_due
from pki.identity import Identity, Role

AGENT = Identity(Role.AGENT, "node1")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca")


@pytest.fixture
def node(tmp_path: Path, authority: Authority) -> Path:
    issue_to(tmp_path / "node", authority, AGENT)
    return tmp_path / "node"


def test_what_was_issued_can_be_loaded(node: Path, authority: Authority) -> None:
    credentials = load_credentials(node)
    assert credentials.identity == AGENT
    assert credentials.ca == authority.pem
    assert credentials.not_after - datetime.now(UTC) > timedelta(days=89)
    assert credentials.key.decode() not in repr(credentials)


def test_modes(node: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in node.iterdir()}
    assert modes == {"cert.key": 0o600, "cert.pem": 0o644, "ca.pem": 0o644}


def test_a_master_keeps_its_credentials_beside_the_authority(tmp_path: Path, authority: Authority) -> None:
    issue_to(tmp_path / "ca", authority, Identity(Role.MASTER, "m1"), hosts=("192.0.2.1",))
    assert load_credentials(tmp_path / "ca", Role.MASTER).identity.server_name == "master.tepui.internal"
    assert Authority.load(tmp_path / "ca").fingerprint == authority.fingerprint


def test_a_new_certificate_is_for_the_old_key(node: Path, authority: Authority) -> None:
    before = load_credentials(node)
    after = issue_to(node, authority, AGENT)
    assert after.key == before.key and after.chain != before.chain


@pytest.mark.parametrize("name", ["cert.key", "cert.pem", "ca.pem"])
def test_missing(node: Path, name: str) -> None:
    (node / name).unlink()
    with pytest.raises(CredentialError, match=rf"{name} is missing: run \"tepui agent join\""):
        load_credentials(node)


def test_missing_at_the_master(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match=r"is missing: run \"tepui master init\""):
        load_credentials(tmp_path, Role.MASTER)


def test_expired_and_not_yet_valid(node: Path) -> None:
    now = datetime.now(UTC)
    with pytest.raises(
        CredentialError, match=r"cert\.pem: expired at \d{4}-\d\d-\d\d .* UTC: run \"tepui agent join\""
    ):
        load_credentials(node, now=now + timedelta(days=91))
    with pytest.raises(CredentialError, match=r"not valid before .*clock"):
        load_credentials(node, now=now - timedelta(minutes=6))


def test_of_another_authority(node: Path, tmp_path: Path) -> None:
    (node / "ca.pem").write_bytes(Authority.create(tmp_path / "other").pem)
    with pytest.raises(CredentialError, match="was issued by another authority"):
        load_credentials(node)


def test_of_another_key(node: Path, tmp_path: Path, authority: Authority) -> None:
    issue_to(tmp_path / "node2", authority, Identity(Role.AGENT, "node2"))
    (node / "cert.pem").write_bytes((tmp_path / "node2/cert.pem").read_bytes())
    with pytest.raises(CredentialError, match="is for another key"):
        load_credentials(node)


def test_of_another_role(node: Path) -> None:
    with pytest.raises(CredentialError, match="not for a role of master"):
        load_credentials(node, Role.MASTER)


def test_a_key_that_others_may_read(node: Path) -> None:
    (node / "cert.key").chmod(0o644)
    with pytest.raises(CredentialError, match=r"may be read by others \(mode 0644\).*chmod 600"):
        load_credentials(node)


@pytest.mark.parametrize("name", ["cert.key", "cert.pem", "ca.pem"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_damaged(node: Path, name: str, content: bytes) -> None:
    (node / name).write_bytes(content)
    with pytest.raises(CredentialError, match="join"):
        load_credentials(node)


def test_a_certificate_without_identity(node: Path) -> None:
    (node / "cert.pem").write_bytes((node / "ca.pem").read_bytes())
    with pytest.raises(CredentialError, match="must be spiffe://DOMAIN/ROLE/NAME"):
        load_credentials(node)


def test_renewal_is_due_in_the_last_third() -> None:
    begin = datetime(2027, 1, 1, tzinfo=UTC)
    credentials = Credentials(b"", b"", b"", AGENT, begin, begin + timedelta(days=90))
    assert not renewal_due(credentials, begin + timedelta(days=60))
    assert renewal_due(credentials, begin + timedelta(days=60, seconds=1))
    assert renewal_due(credentials, begin + timedelta(days=400))
