"""`tepui vip`."""

from __future__ import annotations

import typer

from cli.client import connect
from cli.output import Json, print_json, print_table

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_vips(json: Json = False) -> None:
    """Every virtual address with the tasks behind it."""
    vips = connect().get("/api/v1/vips")["vips"]
    if json:
        print_json(vips)
        return
    rows = (
        (
            f"{vip['address']}:{vip['port']}/{vip['protocol']}",
            vip["name"],
            ", ".join(f"{backend['address']}:{backend['port']}" for backend in vip["backends"]) or "none",
        )
        for vip in vips
    )
    print_table(("VIP", "NAME", "BACKENDS"), rows)
