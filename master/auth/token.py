"""The administrator's token: 256 random bits, shown once when it is made.

Only its digest is kept, so whoever reads the store or a backup of it can't call the API. A plain SHA-256 is enough:
nobody guesses 256 random bits, so a slow hash would protect nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

PREFIX = "tepui-admin-"  # lets scanners recognise a token that leaked into a repository


def mint() -> tuple[str, str]:
    """A new token, and its digest: SHA-256 in hexadecimal."""
    token = PREFIX + secrets.token_urlsafe(32)
    return token, _digest(token)


def matches(token: str, digest: str) -> bool:
    """Takes equally long wherever they differ."""
    return hmac.compare_digest(_digest(token), digest)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()
