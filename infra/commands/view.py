"""`dnd view`: a root in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from data_specs import storage
from infra.commands.options import RootArg, RootCommand

app = typer.Typer()


@app.command(cls=RootCommand)
def view(
    root: RootArg,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="port to listen at; 0: any that is free")
    ] = 7860,
    host: Annotated[
        str, typer.Option("--host", help="address to listen at; beyond this machine the page asks for a token")
    ] = "127.0.0.1",
) -> None:
    """Walks through a root in the browser: samples, codes, what was left out, neighbours, curves; and a studio."""
    from infra.view.server import serve

    serve(storage.absolute(root), host, port)
