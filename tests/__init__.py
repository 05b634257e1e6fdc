"""Tests import this package before anything else, so gRPC is set to TLS 1.3 whatever a test imports first."""

from __future__ import annotations

import wire as wire
