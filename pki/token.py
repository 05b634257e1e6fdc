"""Join tokens: what an operator carries from the master to a new node.

`tepui1.<fingerprint of the CA>.<id>.<secret>`. The fingerprint lets the node know the master before it trusts it, the
secret lets the master know the node. The master keeps a record (`tokens/<id>` in its store) with a hash of the secret;
the secret is 256 random bits, so a plain SHA-256 is as good as a slow one. Redeeming is a pure function from record to
record: who calls it writes the result by compare-and-set, so that two nodes can not share the last use.
"""

from __future__ import annotations

import binascii
import hmac
import json
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256

PREFIX = "tepui1"
TOKEN_ID = re.compile(r"[0-9a-f]{16}")
SECRET_BYTES = 32
FINGERPRINT_BYTES = 32
DEFAULT_TTL_S = 24 * 3600.0


class TokenRefused(Exception):
    """The token is well-formed but does not admit anybody. Retrying is of no use."""


@dataclass(frozen=True, slots=True)
class Token:
    """`str(token)` is what the operator copies; `repr` keeps the secret out of logs."""

    fingerprint: bytes
    id: str
    secret: str = field(repr=False)

    @staticmethod
    def mint(fingerprint: bytes) -> Token:
        return Token(fingerprint, secrets.token_hex(8), secrets.token_urlsafe(SECRET_BYTES))

    def __str__(self) -> str:
        return f"{PREFIX}.{_encode(self.fingerprint)}.{self.id}.{self.secret}"

    @property
    def key(self) -> str:
        """Where the master's store has the record."""
        return record_key(self.id)


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """`hash` is the SHA-256 of the secret in hexadecimal, `expires_at` seconds since the epoch, `uses_left` None for
    any number until then."""

    hash: str
    expires_at: float
    uses_left: int | None


def parse_token(text: str) -> Token:
    """Raises ValueError that says what is wrong, without repeating the secret."""
    parts = text.split(".")
    if parts[0] != PREFIX:
        raise ValueError(f"a join token begins with {PREFIX}.")
    if len(parts) != 4:
        raise ValueError(f"a join token has 4 parts with dots between them, this one has {len(parts)}: copy all of it")
    _, fingerprint, token_id, secret = parts
    if not TOKEN_ID.fullmatch(token_id):
        raise ValueError("the third part of a join token is 16 hexadecimal digits: copy it again")
    _decode(secret, SECRET_BYTES, "fourth")
    return Token(_decode(fingerprint, FINGERPRINT_BYTES, "second"), token_id, secret)


def record_key(token_id: str) -> str:
    return f"tokens/{token_id}"


def new_record(token: Token, now: float, ttl_s: float = DEFAULT_TTL_S, uses: int | None = 1) -> TokenRecord:
    if ttl_s <= 0 or (uses is not None and uses < 1):
        raise ValueError(f"a join token with a lifetime of {ttl_s:g} s and {uses} uses would admit nobody")
    return TokenRecord(_hash(token.secret), now + ttl_s, uses)


def redeem(record: TokenRecord | None, secret: str, now: float) -> TokenRecord:
    """The record after one more use. Raises TokenRefused. The secret is compared first, in constant time: who does
    not have it learns nothing about the token."""
    if record is None or not hmac.compare_digest(record.hash, _hash(secret)):
        raise TokenRefused("unknown token or wrong secret")
    if now >= record.expires_at:
        raise TokenRefused("the token has expired")
    if record.uses_left == 0:
        raise TokenRefused("the token has been used")
    return record if record.uses_left is None else replace(record, uses_left=record.uses_left - 1)


def record_to_json(record: TokenRecord) -> bytes:
    return json.dumps(asdict(record)).encode()


def record_from_json(data: bytes) -> TokenRecord:
    return TokenRecord(**json.loads(data))


def _hash(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str, length: int, part: str) -> bytes:
    fault = ValueError(f"the {part} part of a join token is {length} bytes in base64url: copy it again")
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise fault from error
    # b64decode skips what it does not know, and ignores the last character's spare bits.
    if len(data) != length or _encode(data) != text:
        raise fault
    return data
