"""Whether a bundle is one by the OCI runtime specification, without a runtime.

The schema is our own statement of the specification, for the keys that we may write, and refuses all others: a key
that no runtime knows would be ignored by them all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA = json.loads(Path(__file__).with_name("oci_config.schema.json").read_text())


def violations(config: dict[str, Any]) -> list[str]:
    """Each with the path in the configuration. As JSON, which is what a runtime reads: tuples become lists."""
    written = json.loads(json.dumps(config))
    errors = Draft202012Validator(SCHEMA).iter_errors(written)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
