"""What agents and the master say to each other: protocol, stubs, proto <-> model, and the mutual TLS underneath.

Importing this package decides which TLS versions gRPC speaks in this process, so it comes before the first
`import grpc`. gRPC has no option for the least version that Python can reach, but it takes a list of TLS 1.2 cipher
suites from the environment when its core is loaded. The one named here needs an RSA certificate, and all of ours are
ECDSA: no handshake below TLS 1.3 can succeed. The suites of 1.3 are not touched by the list.
"""

from __future__ import annotations

import os
import sys

SUITES_VARIABLE = "GRPC_SSL_CIPHER_SUITES"
SUITES = "ECDHE-RSA-AES128-GCM-SHA256"

if "grpc" in sys.modules and os.environ.get(SUITES_VARIABLE) != SUITES:
    raise ImportError('grpc was imported before wire and would accept TLS 1.2: put "import wire" first')
os.environ[SUITES_VARIABLE] = SUITES
