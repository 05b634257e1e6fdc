"""`tepui agent`: joins a cluster; runs a node.

What only the daemon needs is imported when it starts: other commands should not wait for it.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.output import Json, print_json
from cli.paths import AGENT_STATE

app = typer.Typer(no_args_is_help=True)

State = Annotated[Path, typer.Option(help="Where the agent keeps everything.")]


@app.command()
def join(
    enrolment: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The master's enrolment port.")],
    token: Annotated[str, typer.Option(help="The join token; '-' reads it from stdin.")],
    name: Annotated[str, typer.Option(help="This node's name.")] = socket.gethostname(),
    control_port: Annotated[int, typer.Option(help="The master's port for agents.")] = 8444,
    state: State = AGENT_STATE,
    json: Json = False,
) -> None:
    """Get this node a certificate. Its private key never leaves it."""
    from cli import agent_daemon

    secret = sys.stdin.readline().strip() if token == "-" else token
    identity = agent_daemon.join(state, enrolment, control_port, secret, name)
    if json:
        print_json({"identity": identity})
    else:
        typer.echo(f"joined as {identity}")


@app.command()
def run(state: State = AGENT_STATE) -> None:
    """Run the agent, in the foreground."""
    from cli import agent_daemon, daemon

    agent_daemon.refuse_unfit_machine()
    daemon.run(agent_daemon.run(state))
