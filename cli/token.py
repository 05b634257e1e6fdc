"""`tepui token`."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.client import connect
from cli.output import Json, print_json

app = typer.Typer(no_args_is_help=True)


@app.command()
def create(
    hours: Annotated[float, typer.Option(help="How long it is valid.")] = 24.0,
    uses: Annotated[int, typer.Option(help="How many nodes may join with it.")] = 1,
    json: Json = False,
) -> None:
    """Make a join token. It is shown once."""
    answer = connect().post("/api/v1/tokens", {"ttl_s": hours * 3600, "uses": uses})
    if json:
        print_json(answer)
    else:
        typer.echo(answer["token"])
