"""`tepui`: one group of commands for each kind of thing.

Exit status: 0; 1 with one line on stderr for what a person can do something about; 2 for wrong usage, which is typer's.
"""

from __future__ import annotations

import sys

import typer

from cli.parts import Parts
from cli.problem import Problem
from lab.errors import LabError

app = typer.Typer(cls=Parts, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback(epilog="Exit status: 0 when it is done, 1 when it is not and why is on stderr, 2 for wrong usage.")
def tepui() -> None:
    """A small data-centre operating system."""


def main() -> None:
    try:
        app()
    except (Problem, LabError) as problem:
        print(f"tepui: {problem}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
