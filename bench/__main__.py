"""script/bench [NAME...] [--json FILE]: run benches one after the other, print their tables, and write the rows.

The file holds one object for one bench, and a list of objects for several.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from bench import burst, density, images, launch, logs, names, overlay, recovery, services, spread, usage, vip
from bench.report import Report

BENCHES: dict[str, Callable[[], Report]] = {
    "burst": burst.run,
    "density": density.run,
    "images": images.run,
    "launch": launch.run,
    "logs": logs.run,
    "names": names.run,
    "overlay": overlay.run,
    "recovery": recovery.run,
    "services": services.run,
    "spread": spread.run,
    "usage": usage.run,
    "vip": vip.run,
}


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help=", ".join(BENCHES))] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows to this file.")] = None,
) -> None:
    """Measure what we claim, beside what others need for the same. Without a name: everything."""
    unknown = sorted(set(names or ()) - set(BENCHES))
    if unknown:
        raise typer.BadParameter(f"there is no bench {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    reports = [_run(name) for name in names or BENCHES]
    if json_file is not None:
        bodies = [report.to_json() for report in reports]
        json_file.write_text(json.dumps(bodies[0] if len(bodies) == 1 else bodies, indent=2) + "\n")


def _run(name: str) -> Report:
    report = BENCHES[name]()
    report.print()
    return report


if __name__ == "__main__":
    typer.run(main)
