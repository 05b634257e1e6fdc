"""`tepui master`: makes a cluster's authority and first credentials; runs the coordinator.

What only the daemon needs is imported when it starts: other commands should not wait for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.output import Json, print_json
from cli.paths import MASTER_STATE

app = typer.Typer(no_args_is_help=True)

State = Annotated[Path, typer.Option(help="Where the master keeps everything.")]
DOMAIN = "tepui.internal"


@app.command()
def init(
    address: Annotated[str, typer.Option(help="What clients call this master: a name or an address.")] = "localhost",
    uses: Annotated[int, typer.Option(min=1, help="How many nodes may join with the token.")] = 1,
    hours: Annotated[float, typer.Option(min=0.01, help="How long the token is valid.")] = 24.0,
    domain: Annotated[str, typer.Option(help="The cluster's own domain.")] = DOMAIN,
    state: State = MASTER_STATE,
    json: Json = False,
) -> None:
    """Make a cluster: its authority, the master's certificate, the administrator's token and a join token."""
    from cli import master_daemon

    made = master_daemon.init(state, address, domain, hours * 3600, uses)
    if json:
        print_json({"token": made.token, "enrolment": made.enrolment, "admin": str(made.admin)})
        return
    typer.echo(f"Credentials of the administrator: {made.admin}")
    typer.echo(f"Start the master:  tepui master run --state {state}")
    typer.echo(f"Then, on a node:   tepui agent join {made.enrolment} --token {made.token}")


@app.command()
def run(state: State = MASTER_STATE) -> None:
    """Run the master, in the foreground."""
    from cli import daemon, master_daemon

    daemon.run(master_daemon.run(state))
