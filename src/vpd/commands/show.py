"""``vpd show``: what was harvested, in the terminal and as pages; trials for readers."""

from pathlib import Path

import typer

from vpd.analysis.harvest.reading import Harvest, open_harvest
from vpd.analysis.look.evidence import gather
from vpd.analysis.look.intruders import make_trials, score_answers, write_trials
from vpd.analysis.look.listing import markdown
from vpd.analysis.look.pages import page_name, write_component_page, write_pages
from vpd.analysis.look.related import load_others
from vpd.analysis.look.terminal import print_evidence
from vpd.analysis.names import parse_subcomponent
from vpd.commands.tables import results_console
from vpd.errors import RunError


def show_command(
    path: Path,
    name: str | None,
    harvest: str | None,
    html: bool,
    out: Path | None,
    intruders: int | None,
    seed: int,
    score: Path | None,
    key: Path | None,
    listing: int | None,
) -> None:
    """Show one subcomponent, all of them, or make and score trials."""
    asked = [score is not None, intruders is not None, listing is not None, name is not None]
    if sum(asked) > 1:
        raise RunError("one thing at a time: give a subcomponent, --intruders, --score or --table")
    if score is not None:
        _print_score(score, key)
        return
    found = open_harvest(path, harvest)
    if intruders is not None:
        if out is None:
            raise RunError("say with -o FILE.json where the trials are to be written")
        write_trials(out, make_trials(found, intruders, seed))
        typer.echo(out)
    elif listing is not None:
        typer.echo(markdown(found, listing), nl=False)
    elif name is not None:
        _show_one(path, found, name, html, out)
    else:
        typer.echo(write_pages(out or path / "show" / found.path.name, found, load_others(path, found)))


def _show_one(path: Path, found: Harvest, name: str, html: bool, out: Path | None) -> None:
    one = parse_subcomponent(name, found.axis.sizes)
    evidence = gather(found, found.axis.place(one), others=load_others(path, found))
    if not html and out is None:
        print_evidence(results_console(), evidence, found.threshold)
        return
    stem = page_name(one.site).removeprefix("site-").removesuffix(".html")
    out = out or path / "show" / f"{found.path.name}-{stem}-{one.index}.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_component_page(out, found, evidence)
    typer.echo(out)


def _print_score(score: Path, key: Path | None) -> None:
    found = score_answers(score, key)
    part, interval = found.right / found.answered, f"[{found.low:.3f}, {found.high:.3f}]"
    typer.echo(
        f"{found.right} of {found.answered} intruders found: {part:.3f} {interval}, 95 % interval; "
        f"guessing finds {found.chance:.3f} (p = {found.p_value:.2g})"
    )
