"""Which sites the patterns of a run file name."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from vpd.config.block import choose, listed, nearest, plain, refusal, show
from vpd.config.targets import StoredTarget, Target, TargetKind

TMS_PAIR = ("linear1", "linear2")
_TMS_PROBES = (*TMS_PAIR, "hidden_layers.0", "hidden_layers.1")
_RESID_PROBES = (
    "layers.0.mlp_in",
    "layers.0.mlp_out",
    "layers.1.mlp_in",
    "layers.1.mlp_out",
    "layers.2.mlp_in",
)
_INDUCTION_PROBES = ("h.0.attn.q_proj", "h.1.attn.q_proj", "h.1.attn.v_proj", "h.1.attn.o_proj", "wte", "lm_head")


class SitePattern(Protocol):
    """A glob over site names with a number of subcomponents."""

    @property
    def module_pattern(self) -> str:
        """Glob over site names."""
        ...

    @property
    def C(self) -> int:
        """Number of subcomponents."""
        ...


def matches(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a glob matches, case-sensitively; `h.1.*` does not match `h.10.x`."""
    return [name for name in names if fnmatchcase(name, pattern)]


def match_sites(
    decomposition_targets: Sequence[SitePattern],
    site_names: Sequence[str],
    key: str = "pd.decomposition_targets",
) -> dict[str, int]:
    """The sites to decompose with their C, in the order of `site_names`.

    Raises: ConfigError when a pattern matches nothing, or two match the same site.
    """
    matched: dict[str, SitePattern] = {}
    for i, item in enumerate(decomposition_targets):
        found = matches(item.module_pattern, site_names)
        if not found:
            raise unmatched(f"{key}[{i}].module_pattern", item.module_pattern, site_names, "site of the target")
        for site in found:
            if site in matched:
                raise refusal(
                    f"{key}[{i}].module_pattern",
                    f"{show(item.module_pattern)} matches {plain(site)}, which "
                    f"{show(matched[site].module_pattern)} matches already",
                    "let each site match one pattern",
                )
            matched[site] = item
    return {site: matched[site].C for site in site_names if site in matched}


def unmatched(key: str, pattern: str, names: Sequence[str], kind: str) -> Exception:
    """The refusal of a glob that matches nothing."""
    close = nearest(pattern, names)
    way_out = choose(pattern, names) if close else f"the sites are {listed(names)}"
    return refusal(key, f"{show(pattern)} matches no {kind}", way_out)


def target_kind(target: Target, patterns: Sequence[str]) -> TargetKind:
    """Which target this is; a stored toy is told by the patterns of the sites to decompose."""
    if not isinstance(target, StoredTarget):
        return target.tag
    if any(matches(pattern, _TMS_PROBES) for pattern in patterns):
        return "tms"
    if any(matches(pattern, _RESID_PROBES) for pattern in patterns):
        return "resid_mlp"
    if any(matches(pattern, _INDUCTION_PROBES) for pattern in patterns):
        return "induction"
    raise refusal(
        "target.run_path",
        f"can't tell which stored toy is meant by the patterns {listed(patterns)}",
        "decompose linear1 and linear2, layers.*.mlp_in and layers.*.mlp_out, or h.*.attn.*",
    )


def tied_pairs(
    tied_weights: Sequence[tuple[str, str]] | None, kind: TargetKind, patterns: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """The effective pairs: as written, or by default linear1 with linear2 where a TMS target has both.

    The order within a pair matters once: V and U start as the second site's.
    """
    if tied_weights is not None:
        return tuple(tied_weights)
    both = all(any(fnmatchcase(site, pattern) for pattern in patterns) for site in TMS_PAIR)
    return (TMS_PAIR,) if kind == "tms" and both else ()
