"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what has that name.")]
Prompt = Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Text, for a language model.")]
Tokens = Annotated[str | None, typer.Option("--tokens", metavar="1,2,3", help="Token ids.")]
Features = Annotated[str | None, typer.Option("--features", metavar="0,3=0.5", help="Features of a toy, 0.75 each.")]
Positions = Annotated[
    str | None, typer.Option("--positions", metavar="3,-1", help="Positions whose outputs count; the last by default.")
]
