"""``vpd reproduce``: a published toy result over several seeds, beside the published row."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import mean, stdev

import typer
from rich.table import Table

from vpd.commands.family import Ended, refuse_unfinished, train_family
from vpd.commands.tables import results_console
from vpd.config import RunConfig, read_document, read_run_file
from vpd.errors import ConfigError
from vpd.run_directory import finite, write_atomically


@dataclass(frozen=True)
class Published:
    """A row of the SPD paper (arXiv:2506.20790).

    Attributes:
        live: subcomponents a site or group of sites, as far as they are published.
        settings: the paper's, where a recipe is shorter.
        mmcs: mean and standard deviation over seeds.
        ml2r: likewise.
    """

    live: Mapping[str, int]
    settings: Mapping[str, object]
    mmcs: tuple[float, float] | None = None
    ml2r: tuple[float, float] | None = None


def _both_groups(schedule: Mapping[str, object]) -> dict[str, object]:
    return {group: {"lr_schedule": schedule} for group in ("components_optimizer", "ci_fn_optimizer")}


def _resid(live: Mapping[str, int], C: int, steps: int, lr: float, width: int = 16) -> Published:
    sites = [{"module_pattern": f"layers.*.{part}", "C": C} for part in ("mlp_in", "mlp_out")]
    gates = {"mode": "layerwise", "fn_type": "mlp", "hidden_dims": [width]}
    return Published(
        live, _both_groups({"start_val": lr}) | {"steps": steps, "decomposition_targets": sites, "ci_config": gates}
    )


_TMS = _both_groups({"start_val": 1e-3, "fn_type": "cosine", "final_val_frac": 0.0}) | {
    "steps": 40000,
    "batch_size": 4096,
}
PUBLISHED: dict[str, Published] = {
    "tms-5-2": Published({"linear1": 5, "linear2": 5}, _TMS, (1.000, 0.000), (0.993, 0.002)),
    "tms-5-2-id": Published({"linear1": 5, "hidden_layers.0": 2, "linear2": 5}, _TMS, (1.000, 0.000), (0.992, 0.010)),
    "tms-40-10": Published({"linear1": 40, "linear2": 40}, _TMS, (1.000, 0.000), (1.010, 0.007)),
    "tms-40-10-id": Published(
        {"linear1": 40, "hidden_layers.0": 10, "linear2": 40}, _TMS, (1.000, 0.000), (1.031, 0.001)
    ),
    "resid-mlp-1": _resid({"layers.0.mlp_in": 100, "layers.0.mlp_out": 50}, 100, 30000, 2e-3),
    "resid-mlp-2": _resid({"layers.*.mlp_in": 100}, 400, 50000, 1e-3),
    "resid-mlp-3": _resid({"layers.*.mlp_in": 102}, 500, 200000, 1e-3, 128),
}
OBJECTIVES = ("spd", "vpd")


@dataclass(frozen=True)
class SeedResult:
    """One seed's run directory, step, metrics and verdict."""

    seed: int
    path: str
    metrics: Mapping[str, float]
    verdict: Sequence[Mapping[str, object]]
    seconds: float

    @property
    def solved(self) -> bool:
        """Whether every bar of the verdict holds."""
        return bool(self.verdict) and all(row["ok"] is not False for row in self.verdict)


def reproduce_command(
    name: str,
    seeds: int,
    objective: str,
    published: bool,
    untied: bool,
    out_dir: Path,
    jobs: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Train every seed, several at a time, and print each beside the published row.

    Seeds that are finished in ``out_dir`` already are read, not trained again.
    """
    configs = [_configured(name, objective, published, untied, seed, out_dir) for seed in range(seeds)]
    # A toy uses one core.
    ended = train_family(configs, [f"seed {c.pd.seed}" for c in configs], jobs or os.cpu_count() or 1, quiet)
    refuse_unfinished(ended)
    results = [_result(config, end) for config, end in zip(configs, ended, strict=True)]
    label = f"{name}, {'untied, ' if untied else ''}{objective} losses{', published settings' if published else ''}"
    summary = summarise(name, objective, published, untied, results)
    folder = out_dir / _label(name, objective, published, untied)
    write_atomically(folder.with_suffix(".json"), json.dumps(finite(summary), indent=2) + "\n")
    if as_json:
        typer.echo(json.dumps(finite(summary)))
    else:
        _print(name, label, results)
        typer.echo(f"all figures: {folder.with_suffix('.json')}")
    return 0


def recipe(name: str, objective: str, untied: bool = False) -> Path:
    """The run file that ships with the package.

    Raises:
        ConfigError: a name or an objective there is none for, or untied where nothing is tied.
    """
    if name not in PUBLISHED:
        raise ConfigError(f"there is no reproduction {name!r}; choose one of {', '.join(PUBLISHED)}")
    if objective not in OBJECTIVES:
        raise ConfigError(f"there is no objective {objective!r}; choose spd (the published losses) or vpd")
    if untied and not name.startswith("tms"):
        raise ConfigError(f"{name} has no tied weights; leave --untied out")
    file = Path(str(resources.files("vpd") / "recipes" / f"{name}{'.vpd' if objective == 'vpd' else ''}.yaml"))
    if not file.exists():
        raise ConfigError(f"{name} has no recipe under the VPD objective; use --objective spd, or tms-5-2")
    return file


def _configured(name: str, objective: str, published: bool, untied: bool, seed: int, out_dir: Path) -> RunConfig:
    content = read_document(recipe(name, objective, untied))
    pd = content["pd"]
    assert isinstance(pd, dict)
    pd |= (
        {"seed": seed}
        | (dict(PUBLISHED[name].settings) if published else {})
        | ({"tied_weights": []} if untied else {})
    )
    label = _label(name, objective, published, untied)
    return read_run_file(content | {"out_dir": str(out_dir / label), "run_id": f"seed-{seed}"}).config


def _label(name: str, objective: str, published: bool, untied: bool) -> str:
    return "-".join([name, objective] + ["published"] * published + ["untied"] * untied)


def _result(config: RunConfig, ended: Ended) -> SeedResult:
    """What the last evaluation of a finished seed found."""
    from vpd.evaluation.run_records import read_records

    last = read_records(ended.path).eval[-1]
    metrics, verdict = last["metrics"], last["verdict"]
    assert isinstance(metrics, dict) and isinstance(verdict, list)
    numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    rows = [row for row in verdict if isinstance(row, dict)]
    return SeedResult(config.pd.seed, str(ended.path), numbers, rows, ended.seconds)


def summarise(
    name: str, objective: str, published: bool, untied: bool, results: Sequence[SeedResult]
) -> dict[str, object]:
    """Everything that was found, for a file."""
    row = PUBLISHED[name]
    return {
        "name": name,
        "objective": objective,
        "published_settings": published,
        "untied": untied,
        "solved": sum(result.solved for result in results),
        "seeds": [
            {"seed": r.seed, "solved": r.solved, "path": r.path, "seconds": r.seconds, "metrics": dict(r.metrics)}
            for r in results
        ],
        "published": {"mmcs": row.mmcs, "ml2r": row.ml2r, "live": dict(row.live)},
    }


def _print(name: str, label: str, results: Sequence[SeedResult]) -> None:
    published = PUBLISHED[name]
    table = Table(title=f"{label}: {sum(r.solved for r in results)} of {len(results)} seeds solved")
    for column in ("seed", "live: " + " / ".join(published.live), "CI error at 0.1 (0.2)"):
        table.add_column(column)
    for column in ("MMCS", "rank-one cosine", "ML2R", "solved"):
        table.add_column(column, justify="right")
    for r in results:
        error = f"{r.metrics['IdentityCIError/total']:.0f} ({r.metrics['IdentityCIError/total@0.2']:.0f})"
        live = " / ".join(f"{_live(r, site):.0f}" for site in published.live)
        scores = [f"{_over_sites(r, key):.4f}" for key in ("MMCS", "MMCS_rank_one", "ML2R")]
        table.add_row(str(r.seed), live, error, *scores, "yes" if r.solved else "no")
    table.add_section()
    spread = [_mean_sd([_over_sites(r, key) for r in results]) for key in ("MMCS", "MMCS_rank_one", "ML2R")]
    table.add_row("mean ± sd", "", "", *spread, "")
    live = " / ".join(str(n) for n in published.live.values())
    paper = [f"{row[0]:.3f} ± {row[1]:.3f}" if row else "" for row in (published.mmcs, published.ml2r)]
    table.add_row("published", live, "", paper[0], "", paper[1], "")
    results_console().print(table)


def _live(result: SeedResult, site: str) -> float:
    return next(
        float(str(row["value"]))
        for row in result.verdict
        if (row["site"], row["measure"]) == (site, "live subcomponents")
    )


def _over_sites(result: SeedResult, key: str) -> float:
    return mean(value for name, value in result.metrics.items() if name.startswith(f"{key}/"))


def _mean_sd(values: Sequence[float]) -> str:
    return f"{mean(values):.4f} ± {stdev(values) if len(values) > 1 else 0.0:.4f}"
