"""`tepui`: one group of commands for each kind of thing.

Errors that a person can do something about are one line on stderr and exit status 1; wrong usage is typer's, status 2.
"""

from __future__ import annotations

import sys

import typer

from cli import agent, events, image, lab, master, network, node, pod, policy, service, task, token, vip, volume
from cli.problem import Problem
from lab.errors import LabError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="A small data-centre operating system.")
app.add_typer(master.app, name="master", help="The coordinator: make one, run it.")
app.add_typer(agent.app, name="agent", help="The daemon of a node: join a cluster, run.")
app.add_typer(service.app, name="service", help="Long-running services: Marathon app definitions.")
app.add_typer(pod.app, name="pod", help="Containers that run together: Marathon pod definitions.")
app.add_typer(task.app, name="task", help="Runs of containers, and their output.")
app.add_typer(node.app, name="node", help="The nodes of the cluster.")
app.add_typer(image.app, name="image", help="The images that nodes have.")
app.add_typer(vip.app, name="vip", help="Virtual addresses.")
app.add_typer(network.app, name="network", help="Networks of containers.")
app.add_typer(policy.app, name="policy", help="Who may connect to whom.")
app.add_typer(volume.app, name="volume", help="Persistent volumes.")
app.add_typer(token.app, name="token", help="What a new node joins with.")
app.add_typer(lab.app, name="lab", help="A whole cluster on this machine, to try and to test.")
app.command()(events.events)


def main() -> None:
    try:
        app()
    except (Problem, LabError) as problem:
        print(f"tepui: {problem}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
