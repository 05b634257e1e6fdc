"""Join tokens: their text, and what is left of them after each use."""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pki.token import (
    Token,
    TokenRecord,
    TokenRefused,
    new_record,
    parse_token,
    record_from_json,
    record_to_json,
    redeem,
)

NOW = 1_800_000_000.0
FINGERPRINT = sha256(b"certificate").digest()


def test_a_token_survives_being_copied_and_hides_its_secret() -> None:
    token = Token.mint(FINGERPRINT)
    assert parse_token(str(token)) == token
    assert token.secret not in repr(token)
    assert str(token).startswith("tepui1.")
    assert Token.mint(FINGERPRINT) != token


def test_the_record_does_not_hold_the_secret() -> None:
    token = Token.mint(FINGERPRINT)
    record = new_record(token, NOW)
    assert token.key == f"tokens/{token.id}"
    assert token.secret.encode() not in record_to_json(record)
    assert record_from_json(record_to_json(record)) == record
    assert record == TokenRecord(sha256(token.secret.encode()).hexdigest(), NOW + 24 * 3600, 1)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda text: "", "begins with tepui1"),
        (lambda text: text.replace("tepui1", "tepui2"), "begins with tepui1"),
        (lambda text: text.rpartition(".")[0], "this one has 3"),
        (lambda text: text + ".x", "this one has 5"),
        (lambda text: text[:-1], "fourth part"),
        (lambda text: text + "\n", "fourth part"),
        (lambda text: text[:10] + "!" + text[11:], "second part"),
        (lambda text: text.replace(text.split(".")[2], "../../etc/passwd"), "has 8"),
        (lambda text: text.replace(text.split(".")[2], "G" * 16), "third part"),
        (lambda text: text.replace(text.split(".")[1], "A" * 42), "second part"),
        (lambda text: text.replace(text.split(".")[1], "A" * 42 + "B"), "second part"),
    ],
)
def test_a_spoiled_token_says_what_is_wrong_without_its_secret(spoil: Callable[[str], str], complaint: str) -> None:
    token = Token.mint(FINGERPRINT)
    with pytest.raises(ValueError, match=complaint) as caught:
        parse_token(spoil(str(token)))
    assert token.secret not in str(caught.value)


@given(
    st.one_of(st.text(), st.text().map(lambda text: f"tepui1.{text}"), st.text(alphabet="tepui1.-_=A0", max_size=120))
)
def test_garbage_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_token(text)


@given(st.binary(min_size=32, max_size=32))
def test_every_fingerprint_makes_a_token(fingerprint: bytes) -> None:
    token = Token.mint(fingerprint)
    assert parse_token(str(token)) == token


def test_one_use_by_default() -> None:
    token = Token.mint(FINGERPRINT)
    spent = redeem(new_record(token, NOW), token.secret, NOW)
    assert spent.uses_left == 0
    with pytest.raises(TokenRefused, match="has been used"):
        redeem(spent, token.secret, NOW)


@given(st.integers(1, 20))
def test_as_many_uses_as_minted(uses: int) -> None:
    token = Token.mint(FINGERPRINT)
    record = new_record(token, NOW, uses=uses)
    for _ in range(uses):
        record = redeem(record, token.secret, NOW)
    with pytest.raises(TokenRefused, match="has been used"):
        redeem(record, token.secret, NOW)


def test_any_number_of_uses_until_it_expires() -> None:
    token = Token.mint(FINGERPRINT)
    record = new_record(token, NOW, ttl_s=60, uses=None)
    assert redeem(record, token.secret, NOW + 59.9) == record
    with pytest.raises(TokenRefused, match="has expired"):
        redeem(record, token.secret, NOW + 60)


def test_without_the_secret_nothing_is_learnt() -> None:
    token = Token.mint(FINGERPRINT)
    spent = redeem(new_record(token, NOW), token.secret, NOW)
    wrong = os.urandom(32).hex()
    for record, now in [(None, NOW), (new_record(token, NOW), NOW), (spent, NOW), (spent, NOW + 1e9)]:
        with pytest.raises(TokenRefused, match=r"^unknown token or wrong secret$"):
            redeem(record, wrong, now)


@pytest.mark.parametrize(("ttl_s", "uses"), [(0, 1), (-1, 1), (60, 0), (60, -1)])
def test_a_token_that_admits_nobody_is_not_minted(ttl_s: float, uses: int) -> None:
    with pytest.raises(ValueError, match="would admit nobody"):
        new_record(Token.mint(FINGERPRINT), NOW, ttl_s, uses)
