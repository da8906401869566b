"""The command line: all commands together."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from akkordeon.cli import network, sentinel
from akkordeon.cli.downpour import downpour
from akkordeon.cli.errors import SentenceGroup
from akkordeon.cli.experiments import compare, plan, report
from akkordeon.cli.options import PageCommand
from akkordeon.cli.serve import serve, watch
from akkordeon.cli.simulate import replay, simulate
from akkordeon.cli.train import measure, predict, resume, train
from akkordeon.data.download import COLLECTIONS
from akkordeon.experiments.config import DATA_DIR
from akkordeon_command.overview import empty

__all__ = ["app", "main"]

if TYPE_CHECKING:
    DataSetName: TypeAlias = str
else:
    DataSetName = Literal[tuple(COLLECTIONS)]

app = empty(SentenceGroup)


def main() -> None:
    """The entry point."""
    app()


app.command()(plan)
app.command()(compare)
app.command(cls=PageCommand)(train)
app.command(cls=PageCommand)(resume)
app.command("test")(measure)
app.command()(predict)
app.command()(report)
app.command()(serve)
app.command()(watch)


@app.command()
def data(
    name: Annotated[DataSetName, typer.Argument(help="Which data set.")],
    data_dir: Annotated[str, DATA_DIR],
) -> None:
    """Download a data set, or what of it is missing."""
    from akkordeon.data.download import download

    for path in download(name, data_dir, progress=sys.stderr.isatty()):
        typer.echo(path)


app.command(cls=PageCommand)(downpour)
app.command()(simulate)
app.command()(replay)
app.command()(network.join)
app.command()(network.status)
app.command()(network.detach)
app.command("set")(network.set_gate)
app.command("insert")(network.insert_gate)
app.command("remove")(network.remove_gate)
app.add_typer(network.app, name="network")
app.add_typer(sentinel.app, name="sentinel")


if __name__ == "__main__":
    main()
