"""What must hold between the blocks of a run file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vpd.config.block import choose, plain, refusal, show
from vpd.config.importance import ChunkwiseTransformerCI, GlobalTransformerCI
from vpd.config.losses import (
    FreshAdversary,
    ImportanceMinimalityLoss,
    Loss,
    PersistentAdversary,
    ReconTerm,
)
from vpd.config.metrics import (
    CI_L0,
    AnyMetric,
    AttnPatterns,
    CEandKLLosses,
    IdentityCIError,
    PermutedCIPlots,
    PermutedPlots,
    PGDReconProbe,
    UVPlots,
)
from vpd.config.schedule import LRSchedule
from vpd.config.sites import TMS_PAIR, match_sites, matches, unmatched
from vpd.config.sources import RepeatedScope, Scope, needs_sequence, resolved_scope
from vpd.config.targets import (
    LOOKUPS,
    TARGET_NAMES,
    FeatureData,
    InductionTarget,
    LMTarget,
    PythonTarget,
    ResidMLPTarget,
    SiteShapes,
    TMSTarget,
    TokenData,
    ToyTarget,
)

if TYPE_CHECKING:
    from vpd.config.run import RunConfig

_LOSSES = "pd.loss_metrics"
_METRICS = "eval.metrics"


def check_run(config: RunConfig) -> None:
    """Refuse a combination of blocks that can't work.

    Raises: ConfigError with the first problem.
    """
    _check_data(config)
    _check_schedules(config)
    _check_muon(config)
    _check_distinct_keys(config.pd.loss_metrics, _LOSSES)
    for key, term in _terms(config):
        _check_scope(config, key, term)
        _check_starts(config, key, term)
        _check_power(config, key, term)
    _check_patterns(config)
    _check_sequence_fits(config)
    _check_mesh(config)
    if config.eval is not None:
        _check_distinct_keys(config.eval.metrics, _METRICS)
        for i, metric in enumerate(config.eval.metrics):
            _check_metric(config, f"{_METRICS}[{i}]", metric)
    if isinstance(config.target, ToyTarget):
        check_sites(config, config.target.site_shapes)
    else:
        _check_without_sites(config)


def _check_mesh(config: RunConfig) -> None:
    """What can be said of a mesh before it is known how many devices there are."""
    runtime, batch = config.runtime, config.pd.batch_size
    if runtime.dp is not None and batch % runtime.dp:
        raise refusal(
            "runtime.dp", f"must divide pd.batch_size {batch}, got {runtime.dp}", "write for example dp: null"
        )
    if runtime.mesh is None:
        return
    if runtime.dp is not None:
        raise refusal("runtime.dp", "says the same as runtime.mesh", "write dp: null")
    sizes = runtime.mesh.sizes
    known = max(1, sizes["data"]) * max(1, sizes["fsdp"])
    if batch % known:
        said = f"splits pd.batch_size {batch} into {known} parts, which does not divide it"
        raise refusal("runtime.mesh", said, "write data and fsdp whose product divides it")
    if runtime.placement != "ddp" and sizes["fsdp"] == 1 and set(sizes.values()) != {1}:
        said = f"has one device along fsdp, over which placement {runtime.placement} splits parameters"
        raise refusal("runtime.mesh", said, "write fsdp: -1 and data: 1, or placement: ddp")


def check_sites(config: RunConfig, shapes: SiteShapes) -> None:
    """Refuse what does not fit the sites of the target, which a stored one shows only when it is loaded.

    Raises: ConfigError with the first problem.
    """
    sites = _decomposed(config, tuple(shapes))
    check_riders(config.pd.loss_metrics, list(sites))
    _check_ties(config, sites)
    for a, b in config.tied_pairs:
        _check_transposed(shapes, a, b)
    for i, metric in enumerate(config.eval.metrics if config.eval else ()):
        _refuse_unmatched(_patterns_of(f"{_METRICS}[{i}]", metric), list(sites))
        if isinstance(metric, IdentityCIError):
            _check_expected_patterns(config, f"{_METRICS}[{i}]", metric, sites)


def _check_without_sites(config: RunConfig) -> None:
    """What is certain of a target whose sites are not known yet."""
    if config.target_kind == "tms":
        named = [(item, matches(item.module_pattern, TMS_PAIR)) for item in config.pd.decomposition_targets]
        _check_ties(config, {site: item.C for item, found in named for site in found})
    for i, metric in enumerate(config.eval.metrics if config.eval else ()):
        if isinstance(metric, IdentityCIError):
            _check_expected_patterns(config, f"{_METRICS}[{i}]", metric, None)


def check_riders(losses: Sequence[Loss], sites: Sequence[str]) -> None:
    """Refuse a rider none of whose sites is decomposed.

    Raises: ConfigError with the first such glob.
    """
    for i, term in enumerate(losses):
        _refuse_unmatched(_rider_patterns(f"{_LOSSES}[{i}]", term), sites)


def _refuse_unmatched(patterns: Iterator[tuple[str, str]], sites: Sequence[str]) -> None:
    for where, pattern in patterns:
        if not matches(pattern, sites):
            raise unmatched(where, pattern, sites, "decomposed site")


def _rider_patterns(key: str, term: Loss | AnyMetric) -> Iterator[tuple[str, str]]:
    """The site globs of a rider, each with its dotted key."""
    if isinstance(term, ReconTerm) and term.hidden_acts_reconstruction is not None:
        for i, glob in enumerate(term.hidden_acts_reconstruction.sites):
            yield f"{key}.hidden_acts_reconstruction.sites[{i}]", glob


def _terms(config: RunConfig) -> Iterator[tuple[str, Loss]]:
    for i, term in enumerate(config.pd.loss_metrics):
        yield f"{_LOSSES}[{i}]", term


def _check_data(config: RunConfig) -> None:
    target, data = config.target, config.data
    if config.target_kind == "induction":
        if data is not None:
            raise refusal("data", "an induction target makes its own data", "write data: null")
    elif isinstance(target, PythonTarget):
        if data is not None:
            raise refusal("data", "a traced target is given its batches in Python", "write data: null")
    elif isinstance(target, LMTarget):
        if not isinstance(data, TokenData):
            raise refusal("data", "a language model needs text", "write data with dataset_name and tokenizer_name")
    elif not isinstance(data, FeatureData):
        raise refusal("data", "a toy target needs sparse features", "write data with feature_probability")


def _check_schedules(config: RunConfig) -> None:
    schedules: list[tuple[str, LRSchedule]] = [
        ("pd.components_optimizer", config.pd.components_optimizer.lr_schedule),
        ("pd.ci_fn_optimizer", config.pd.ci_fn_optimizer.lr_schedule),
    ]
    for key, term in _terms(config):
        if isinstance(term, PersistentAdversary):
            schedules.append((f"{key}.optimizer", term.optimizer.lr_schedule))
    for key, schedule in schedules:
        if schedule.warmup_steps(config.pd.steps) >= config.pd.steps:
            raise refusal(
                f"{key}.lr_schedule.warmup_pct",
                f"{schedule.warmup_pct:g} makes warm-up take all {config.pd.steps} steps",
                "write a smaller fraction, for example warmup_pct: 0.01",
            )


def _check_muon(config: RunConfig) -> None:
    """Muon works on matrices; the gates of an `mlp` with one hidden layer are vectors."""
    ci = config.pd.ci_config
    if config.pd.ci_fn_optimizer.type == "muon" and ci.fn_type == "mlp" and len(ci.hidden_dims) == 1:
        raise refusal(
            "pd.ci_fn_optimizer.type",
            f"muon has no effect on fn_type mlp with hidden_dims {list(ci.hidden_dims)}, which has no matrix",
            "write type: adamw",
        )


def _check_distinct_keys(entries: Sequence[Loss | AnyMetric], key: str) -> None:
    seen: set[str] = set()
    for i, entry in enumerate(entries):
        if entry.key in seen:
            raise refusal(
                f"{key}[{i}].name",
                f"{plain(entry.key)} occurs twice in this list, and its values could not be told apart",
                f"give each one a distinct name, for example name: {plain(entry.key)}_{i}",
            )
        seen.add(entry.key)


def _check_scope(config: RunConfig, key: str, term: Loss | AnyMetric) -> None:
    if isinstance(term, PersistentAdversary):
        _refuse_missing_axis(config, f"{key}.scope.type", term.scope)
        _check_leading_size(config, f"{key}.scope", term.scope)
    elif isinstance(term, FreshAdversary | PGDReconProbe):
        _refuse_missing_axis(config, f"{key}.mask_scope", term.mask_scope)


def _refuse_missing_axis(config: RunConfig, key: str, scope: Scope | RepeatedScope | str) -> None:
    if needs_sequence(scope) and not config.has_sequence:
        written = scope if isinstance(scope, str) else scope.type
        raise refusal(
            key,
            f"{written} has one source per sequence position, and this target has no sequence axis",
            f"write {written.replace('s', '')}",
        )


def _check_leading_size(config: RunConfig, key: str, scope: Scope | RepeatedScope) -> None:
    """Sources are tiled over the batch, in training and in evaluation."""
    shape, n_sources = resolved_scope(scope, config.has_sequence)
    if n_sources is not None and config.pd.batch_size % n_sources:
        raise refusal(
            f"{key}.n_sources",
            f"{n_sources} does not divide pd.batch_size {config.pd.batch_size}",
            "write a divisor of the batch size",
        )
    leading = config.pd.batch_size if shape in ("bc", "bsc") else (n_sources or 1)
    if config.eval is not None and config.eval.batch_size % leading:
        raise refusal(
            "eval.batch_size",
            f"{config.eval.batch_size} is no multiple of the {leading} sources of {key}, which is evaluated as well",
            f"write a multiple of {leading}",
        )


def _check_starts(config: RunConfig, key: str, term: Loss) -> None:
    if not isinstance(term, PersistentAdversary):
        return
    last = (config.pd.steps - 1) / config.pd.steps
    if term.start_frac > last:
        raise refusal(
            f"{key}.start_frac",
            f"{term.start_frac:g} is past the last of {config.pd.steps} steps, so the term is never active",
            "write a smaller fraction, for example start_frac: 0.5",
        )


def _check_power(config: RunConfig, key: str, term: Loss | AnyMetric) -> None:
    """Importances of swish_hard dip below 0, where only a whole power is a number."""
    if config.pd.sigmoid_type != "swish_hard" or not isinstance(term, ImportanceMinimalityLoss):
        return
    anneals = term.p_anneal_final_p is not None and term.p_anneal_start_frac < 1
    if anneals or term.pnorm != int(term.pnorm):
        field = "p_anneal_final_p" if anneals else "pnorm"
        raise refusal(
            f"{key}.{field}",
            f"{getattr(term, field):g} takes powers that are not whole of importances, and those of pd.sigmoid_type "
            "swish_hard may be below 0",
            "write sigmoid_type: leaky_hard" + (", or a constant p of 1 or 2" if anneals else ", or a p of 1 or 2"),
        )


def _check_patterns(config: RunConfig) -> None:
    _refuse_repeated([item.module_pattern for item in config.pd.decomposition_targets], "pd.decomposition_targets")
    identities = config.pd.identity_decomposition_targets or ()
    _refuse_repeated([item.module_pattern for item in identities], "pd.identity_decomposition_targets")


def _decomposed(config: RunConfig, names: Sequence[str]) -> dict[str, int]:
    """The decomposed sites with their C."""
    sites = match_sites(config.pd.decomposition_targets, names)
    vectors = [name for name in names if name not in LOOKUPS]
    identities = config.pd.identity_decomposition_targets or ()
    inserted = match_sites(identities, vectors, "pd.identity_decomposition_targets")
    return sites | {f"{site}.pre_identity": C for site, C in inserted.items()}


def _refuse_repeated(patterns: Sequence[str], key: str) -> None:
    for i, pattern in enumerate(patterns):
        if pattern in patterns[:i]:
            raise refusal(
                f"{key}[{i}].module_pattern",
                f"{show(pattern)} is there already at index {patterns.index(pattern)}",
                "remove one of the two",
            )


def _check_ties(config: RunConfig, sites: dict[str, int]) -> None:
    key = "pd.tied_weights"
    seen: set[str] = set()
    for a, b in config.tied_pairs:
        for site in (a, b):
            if site not in sites:
                raise refusal(key, f"{plain(site)} is not decomposed", choose(site, sites))
        if a == b:
            raise refusal(key, f"{plain(a)} can't be tied to itself", "write [[linear1, linear2]] or []")
        if seen & {a, b}:
            twice = plain(a if a in seen else b)
            raise refusal(key, f"{twice} is tied twice", "let each site be in one pair")
        seen |= {a, b}
        if sites[a] != sites[b]:
            why = "" if config.pd.tied_weights is not None else " (null ties them on a TMS target)"
            raise refusal(
                key,
                f"tied sites need the same C, but {a} has {sites[a]} and {b} has {sites[b]}{why}",
                "make C equal, or write tied_weights: [] to untie them",
            )


def _check_transposed(shapes: SiteShapes, a: str, b: str) -> None:
    """A tied pair has each other's transposed shape; an inserted identity is square."""
    widths = {f"{site}.pre_identity": (d_in, d_in) for site, (d_in, _) in shapes.items()}
    first, second = (shapes | widths)[a], (shapes | widths)[b]
    if first != second[::-1]:
        raise refusal(
            "pd.tied_weights",
            f"{a} {list(first)} and {b} {list(second)} are not each other's transpose",
            "tie sites of transposed shapes, or write tied_weights: [] to untie them",
        )


def _check_sequence_fits(config: RunConfig) -> None:
    ci = config.pd.ci_config
    if not isinstance(ci, GlobalTransformerCI | ChunkwiseTransformerCI):
        return
    longest = ci.simple_transformer_ci_cfg.attn_config.max_len
    for key, length in _sequence_lengths(config):
        if length > longest:
            raise refusal(
                "pd.ci_config.simple_transformer_ci_cfg.attn_config.max_len",
                f"{longest} is shorter than {key} {length}",
                f"write max_len: {length}",
            )


def _sequence_lengths(config: RunConfig) -> Iterator[tuple[str, int]]:
    """Where the file says how long its sequences are."""
    if isinstance(config.data, TokenData):
        yield "data.max_seq_len", config.data.max_seq_len
    if isinstance(config.target, InductionTarget):
        yield "target.seq_len", config.target.seq_len


def _check_metric(config: RunConfig, key: str, metric: AnyMetric) -> None:
    _check_scope_of_metric(config, key, metric)
    _check_power(config, key, metric)
    toy = config.target_kind in ("tms", "resid_mlp")
    if config.target_kind not in ("lm", "induction") and isinstance(metric, CEandKLLosses | AttnPatterns):
        raise refusal(
            f"{key}.type",
            f"{metric.type} needs a language model, and the target is a {TARGET_NAMES[config.target_kind]}",
            "remove the metric",
        )
    if not toy and isinstance(metric, IdentityCIError | PermutedCIPlots):
        raise refusal(
            f"{key}.type",
            f"{metric.type} probes single features, which a {TARGET_NAMES[config.target_kind]} target does not have",
            "remove the metric",
        )
    if not toy and isinstance(metric, UVPlots) and metric.identity_patterns:
        raise refusal(
            f"{key}.identity_patterns",
            f"the identity shows on single features, which a {TARGET_NAMES[config.target_kind]} target does not have",
            "write dense_patterns",
        )


def _check_scope_of_metric(config: RunConfig, key: str, metric: AnyMetric) -> None:
    if isinstance(metric, PersistentAdversary):
        same = [term for term in config.pd.loss_metrics if term.key == metric.key]
        if not same or same[0].model_copy(update={"coeff": 1.0}) != metric:
            raise refusal(
                f"{key}.type",
                f"{metric.type} has sources only where it is trained on, and no term of pd.loss_metrics is the same",
                "remove it here, since losses trained on are evaluated as well, or write PGDReconLoss",
            )
        return
    _check_scope(config, key, metric)


def _patterns_of(key: str, metric: AnyMetric) -> Iterator[tuple[str, str]]:
    """Every site glob in a metric, with its dotted key."""
    yield from _rider_patterns(key, metric)
    if isinstance(metric, CI_L0):
        for name, globs in (metric.groups or {}).items():
            for i, glob in enumerate(globs):
                yield f"{key}.groups.{name}[{i}]", glob
    elif isinstance(metric, IdentityCIError):
        for i, identity in enumerate(metric.identity_ci or ()):
            yield f"{key}.identity_ci[{i}].layer_pattern", identity.layer_pattern
        for i, dense in enumerate(metric.dense_ci or ()):
            yield f"{key}.dense_ci[{i}].layer_pattern", dense.layer_pattern
    elif isinstance(metric, PermutedPlots):
        for i, glob in enumerate(metric.identity_patterns or ()):
            yield f"{key}.identity_patterns[{i}]", glob
        for i, glob in enumerate(metric.dense_patterns or ()):
            yield f"{key}.dense_patterns[{i}]", glob


def _check_expected_patterns(
    config: RunConfig, key: str, metric: IdentityCIError, sites: dict[str, int] | None
) -> None:
    target = config.target
    features = target.n_features if isinstance(target, TMSTarget | ResidMLPTarget) else None
    for i, identity in enumerate(metric.identity_ci or ()):
        where = f"{key}.identity_ci[{i}].n_features"
        if features is not None and identity.n_features != features:
            raise refusal(
                where,
                f"{identity.n_features} differs from target.n_features {features}",
                f"write n_features: {features}",
            )
        _refuse_too_few(where, identity.n_features, _smallest_C(config, identity.layer_pattern, sites))
    for i, dense in enumerate(metric.dense_ci or ()):
        where = f"{key}.dense_ci[{i}].k"
        _refuse_too_few(where, dense.k, _smallest_C(config, dense.layer_pattern, sites))


def _smallest_C(config: RunConfig, pattern: str, sites: dict[str, int] | None) -> int | None:
    """The least C among the sites a pattern names, as far as it is certain without the target."""
    if sites is not None:
        return min(sites[site] for site in matches(pattern, sites))
    same = [item.C for item in config.pd.decomposition_targets if item.module_pattern == pattern]
    return same[0] if same else None


def _refuse_too_few(key: str, expected: int, C: int | None) -> None:
    if C is not None and expected > C:
        raise refusal(
            key,
            f"{expected} is more than the C {C} of the site",
            f"write a number <= {C}, or raise C in pd.decomposition_targets",
        )
