"""``vpd cluster``: which subcomponents of a run fire together, as a table, figures and files."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import typer
from matplotlib.figure import Figure
from rich.table import Table

from vpd.analysis.artefacts import artefact_path, new_artefact
from vpd.analysis.clustering import figures as drawn
from vpd.analysis.clustering.across import Correspondence, correspond
from vpd.analysis.clustering.collect import Sampling
from vpd.analysis.clustering.distance import jaccard
from vpd.analysis.clustering.ensemble import co_membership
from vpd.analysis.clustering.run_clustering import Found, Merging, cluster, observed
from vpd.analysis.clustering.store import KIND, SCHEMA_VERSION, Clustering, Clusters, load_clusters, write_clusterings
from vpd.analysis.names import FlatAxis
from vpd.analysis.run import open_run
from vpd.commands.tables import results_console
from vpd.errors import RunError
from vpd.evaluation.figures import png
from vpd.progress import bar_unless, training_meter
from vpd.run_directory import finite, write_atomically

SHOWN, NAMED = 20, 6


def cluster_command(
    path: Path,
    step: int | None,
    sampling: Sampling,
    merging: Merging,
    name: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Cluster a run, write ``clusters/NAME`` into its directory, and print what was found."""
    place = artefact_path(path, KIND, name, force)
    run = open_run(path, step)
    found = cluster(*observed(run, sampling, quiet), sampling, merging, quiet)
    facts = as_values(found)
    with new_artefact(place, SCHEMA_VERSION, run.origin, facts) as draft:
        write_clusterings(draft, found.clusterings, run.axis, found.selection.kept, found.density)
        (draft / "figures").mkdir()
        for stem, figure in figures_of(found, run.axis).items():
            write_atomically(draft / "figures" / f"{stem}.png", png(figure))
    if as_json:
        typer.echo(json.dumps({"path": str(place), **facts}))
        return
    for alpha in merging.alphas:
        _print(found, alpha, run.axis)
    typer.echo(headline(found))
    typer.echo(str(place))


def as_values(found: Found) -> dict[str, object]:
    """Settings and results as plain values."""
    firings, left_out = found.firings, found.selection
    values = {
        "sampling": asdict(found.sampling) | {"positions": firings.positions},
        "merging": asdict(found.merging),
        "subcomponents": firings.n,
        "left_out": {"dead": left_out.dead, "rare": left_out.rare, "always_on": left_out.always_on},
        "clusterings": [_summary(one) for one in found.clusterings],
        "agreement": [_distances(found, alpha) for alpha in found.merging.alphas if found.merging.seeds > 1],
    }
    plain = finite(values)
    assert isinstance(plain, dict)
    return plain


def _summary(one: Clustering) -> dict[str, object]:
    history, sizes = one.history, one.sizes
    return {
        "alpha": one.alpha,
        "seed": one.seed,
        "representative": one.representative,
        "clusters": len(sizes),
        "merges_to_cut": history.cut,
        "clusters_of_two_and_more": int(np.sum(sizes > 1)),
        "largest": int(sizes.max()),
        "bits_alone": history.initial,
        "bits_at_cut": float(history.lengths[history.cut]),
        "bits_as_one": float(history.lengths[-1]),
        "cohesion": float(np.average(one.cohesion, weights=sizes)),
        "stability": float(np.average(one.stability, weights=sizes)),
    }


def _distances(found: Found, alpha: float) -> dict[str, object]:
    agreed = found.agreements[alpha]
    every = {"variation_of_information": agreed.information, "adjusted_rand": agreed.rand, "moved": agreed.moved}
    return {"alpha": alpha, **{name: matrix.tolist() for name, matrix in every.items()}}


def headline(found: Found) -> str:
    """What took part and what did not, in a line."""
    left_out, firings = found.selection, found.firings
    mean = len(firings.fired) / firings.positions
    return (
        f"{firings.n} subcomponents at {firings.positions} positions, {mean:.4g} of them firing on average; left out: "
        f"{left_out.dead} that never fire, {left_out.rare} that rarely do, {left_out.always_on} that nearly always do"
    )


def _print(found: Found, alpha: float, axis: FlatAxis) -> None:
    one = found.representative(alpha)
    history, sizes = one.history, one.sizes
    title = (
        f"alpha {alpha:g}: {len(sizes)} clusters, {np.sum(sizes > 1)} of them of two and more; "
        f"{history.initial:.4g} → {history.lengths[history.cut]:.4g} bits per position"
    )
    table = Table(title=title, title_justify="left")
    several = found.merging.seeds > 1
    for word in (
        "cluster",
        "members",
        "sites",
        "fires at",
        "of these fire",
        *["found again"] * several,
        "subcomponents",
    ):
        table.add_column(word, justify="left" if word == "subcomponents" else "right", overflow="fold")
    for number in range(min(SHOWN, len(sizes))):
        members = [axis.at(int(place)) for place in found.selection.kept[one.labels == number]]
        named = [str(member) for member in members[:NAMED]] + ["…"] * (len(members) > NAMED)
        cells = [str(number), str(len(members)), str(len({member.site for member in members}))]
        cells += [f"{one.density[number]:.3g}", f"{one.cohesion[number]:.2f}"]
        cells += [f"{one.stability[number]:.2f}"] * several
        table.add_row(*cells, "  ".join(named))
    results_console().print(table)
    if len(sizes) > SHOWN:
        typer.echo(f"{len(sizes) - SHOWN} smaller clusters are in the files")
    if several:
        agreed, others = found.agreements[alpha], ~np.eye(found.merging.seeds, dtype=bool)
        typer.echo(
            f"{found.merging.seeds} seeds, seed {one.seed} is shown: variation of information "
            f"{agreed.information[others].mean():.3g} bits, adjusted Rand {agreed.rand[others].mean():.3f}, "
            f"moved {agreed.moved[others].mean():.1%} on average over pairs"
        )


def figures_of(found: Found, axis: FlatAxis) -> Mapping[str, Figure]:
    """The figures by name: those of every α, then of the first one."""
    merging = found.merging
    one = found.representative(merging.alphas[0])
    courses = [drawn.Course(f"alpha {c.alpha:g}", c.history) for c in found.clusterings]
    pictures = {"cost_curve": drawn.cost_curve(courses)}
    names = [str(axis.at(int(place))) for place in found.selection.kept]
    if found.firings.n <= drawn.MAX_LEAVES:
        pictures["merge_tree"] = drawn.merge_tree(one.history, names, one.labels)
    else:
        pictures["merge_order"] = drawn.merge_order(one.history)
    shown = drawn.shown_members(one.labels)
    labels, shown_names = one.labels[shown], [names[i] for i in shown]
    within = found.firings.only(np.sort(shown))
    back = np.argsort(np.argsort(shown))
    overlap = jaccard(within, within)[np.ix_(back, back)]
    pictures["firing_together"] = drawn.heat_map(overlap, labels, shown_names, "Jaccard index of firings")
    if merging.seeds > 1:
        agreed = co_membership([c.labels for c in found.of(one.alpha)], shown)
        pictures["co_membership"] = drawn.heat_map(agreed, labels, shown_names, "seeds that cluster the two together")
    return pictures


def against_command(path: Path, other: Path, name: str, as_json: bool, quiet: bool) -> None:
    """Print which cluster of a run is which of another one, by where they fire; nothing is written."""
    both = load_clusters(path, name), load_clusters(other, name)
    sampling = sampling_of(both[0])
    run, another = (
        open_run(place, clusters.artefact.origin.step) for place, clusters in zip((path, other), both, strict=True)
    )
    with training_meter(sampling.positions, 0, bar_unless(quiet), "collecting firings", "position") as meter:
        found = correspond(run, both[0], another, both[1], sampling, lambda seen: meter(seen, {}))
    if as_json:
        typer.echo(json.dumps(finite(_correspondence_values(found))))
        return
    _print_correspondence(found, *both, f"{path} and {other}")


def sampling_of(clusters: Clusters) -> Sampling:
    """The positions that clusters were made from.

    Raises:
        RunError: where they are not written down as they should be.
    """
    written = clusters.artefact.facts.get("sampling")
    try:
        assert isinstance(written, dict)
        return Sampling(**written)
    except (AssertionError, TypeError):
        raise RunError(f"{clusters.artefact.path} does not say how it was made; make these clusters again") from None


def _correspondence_values(found: Correspondence) -> dict[str, object]:
    rows = zip(found.pairs.tolist(), found.similarity.tolist(), strict=True)
    return {
        "agreement": found.agreement,
        "positions": found.positions,
        "clusters": [len(found.here), len(found.there)],
        "pairs": [{"here": i, "there": j, "jaccard": value} for (i, j), value in rows],
    }


def _print_correspondence(found: Correspondence, here: Clusters, there: Clusters, what: str) -> None:
    table = Table(title=f"{what}: agreement {found.agreement:.3f}", title_justify="left")
    for word in ("cluster", "members", "fires at", "there", "members", "fires at", "Jaccard"):
        table.add_column(word, justify="right")
    by_cluster = np.argsort(found.pairs[:, 0])[:SHOWN]
    for (i, j), value in zip(found.pairs[by_cluster].tolist(), found.similarity[by_cluster], strict=True):
        left = (str(i), str(len(here.members(i))), f"{found.here[i]:.3g}")
        table.add_row(*left, str(j), str(len(there.members(j))), f"{found.there[j]:.3g}", f"{value:.3f}")
    results_console().print(table)
    typer.echo(f"{len(here)} and {len(there)} clusters, paired by where they fire at {found.positions} positions")
