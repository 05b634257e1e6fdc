"""`tepui lab`: a whole cluster on this machine, every node in namespaces of its own.

What touches the kernel is imported when it is needed: other commands should not wait for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import Json, print_json, print_table
from cli.problem import Problem

if TYPE_CHECKING:
    from lab.cluster import Lab

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Option(help="Labs with different names have nothing in common.")]
DEFAULT = "lab"


@app.command()
def up(nodes: Annotated[int, typer.Option(min=1)] = 3, name: Name = DEFAULT) -> None:
    """Make a master and some nodes, and start them."""
    from lab.daemons import start_cluster

    start_cluster(_lab(name), nodes)
    typer.echo(f"lab {name!r} is up. Try:\n  {_exec(name)} master -- tepui node list")


@app.command("ls")
def list_nodes(name: Name = DEFAULT, json: Json = False) -> None:
    """The nodes of a lab."""
    lab = _lab(name)
    nodes = [{"node": node.name, "address": str(node.address), "on": lab.is_on(node.name)} for node in lab.nodes()]
    if json:
        print_json(nodes)
    else:
        rows = ((node["node"], node["address"], "on" if node["on"] else "off") for node in nodes)
        print_table(("NODE", "ADDRESS", "POWER"), rows)


@app.command("exec", context_settings={"ignore_unknown_options": True})
def execute(
    node: Annotated[str, typer.Argument(help="master, n1, n2, ...")],
    command: Annotated[list[str], typer.Argument(metavar="-- CMD...")],
    name: Name = DEFAULT,
) -> None:
    """Run a command on a node. `tepui` commands have the administrator's credentials."""
    from lab.daemons import command as on_node

    argv = on_node(_lab(name), node, command)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise Problem(f"{argv[0]}: {error.strerror}") from error


@app.command()
def boot(node: str, name: Name = DEFAULT) -> None:
    """Switch a node on that is off."""
    _lab(name).boot(node)


@app.command("power-off")
def power_off(node: str, name: Name = DEFAULT) -> None:
    """Cut a node's power: everything on it dies at once."""
    _lab(name).power_off(node)


@app.command()
def down(name: Name = DEFAULT) -> None:
    """Remove a lab, also one that a crash left half made."""
    typer.echo(f"lab {name!r} is removed" if _lab(name).down() else f"there is no lab {name!r}")


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab up afterwards.")] = False,
    remove: Annotated[bool, typer.Option("--down", help="Only remove what --keep left.")] = False,
) -> None:
    """Show what Tepui does, on a lab of three nodes, and check every step of it."""
    from lab import demo as demonstration

    lab = _lab(demonstration.NAME)
    if remove:
        lab.down()
        return
    demonstration.run(lab, keep)
    if keep:
        run = _exec(lab.name)
        typer.echo("The lab is still up. Try, as root, with .venv/bin in PATH:")
        for line in ("tepui service show /web", "tepui task list", "tepui node list", "tepui service scale /web 6"):
            typer.echo(f"  {run} master -- {line}")
        typer.echo(f"  {run} n1 -- ip route\nRemove it with:  script/demo --down")


def _lab(name: str) -> Lab:
    from lab.cluster import Lab

    return Lab(name)


def _exec(name: str) -> str:
    return "tepui lab exec" + ("" if name == DEFAULT else f" --name {name}")
