"""Everything that is said of a run's attention, and the tables of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float, Int

from vpd.analysis.attention.heads import (
    Fractions,
    HeadSpaces,
    Overlap,
    head_fractions,
    head_spaces,
    heads_spanned,
    live_weights,
    overlaps,
)
from vpd.analysis.attention.interactions import Pairs, query_key_pairs, value_output_pairs
from vpd.analysis.attention.layers import ROLES, AttentionLayer, Role, attention_weights
from vpd.analysis.attention.scores import Masking, ScoreParts, prompt_scores
from vpd.analysis.attention.typical import Typical, typical_sizes
from vpd.analysis.run import Run
from vpd.evaluation.health import ALIVE_MEAN_CI

Row = dict[str, object]


@dataclass(frozen=True)
class LayerStudy:
    """What is static in one layer.

    Attributes:
        layer: which.
        queries_keys: None where either is not decomposed.
        values_outputs: likewise.
        fractions: of every decomposed projection.
        order: its subcomponents that do anything on data, the largest first.
    """

    layer: AttentionLayer
    queries_keys: Pairs | None
    values_outputs: Pairs | None
    fractions: Mapping[Role, Fractions]
    order: Mapping[Role, Sequence[int]]


@dataclass(frozen=True)
class Study:
    """A run's attention.

    Attributes:
        typical: sizes on data.
        layers: what is static.
        spaces: of the frozen weights' heads.
        overlap: by source of the subspaces, then by kind.
        prompt: the scores of each layer, where a prompt was given.
    """

    typical: Typical
    layers: Sequence[LayerStudy]
    spaces: HeadSpaces
    overlap: Mapping[str, Mapping[Overlap, Float[np.ndarray, "heads heads"]]]
    prompt: Sequence[ScoreParts]

    @property
    def chance(self) -> float:
        """How far two random subspaces overlap that are as large as those of the heads."""
        return float(np.mean([basis.shape[1] / basis.shape[0] for basis in self.spaces.write]))


def study_attention(
    run: Run,
    layers: tuple[AttentionLayer, ...],
    batches: int,
    longest: int,
    tokens: Int[Array, "1 T"] | None = None,
    masking: Masking = "ci",
    quiet: bool = False,
) -> Study:
    """Look at the attention of some layers.

    Args:
        run: opened.
        layers: which.
        batches: of data that sizes are measured on.
        longest: number of offsets.
        tokens: of a prompt.
        masking: of the model on the prompt.
        quiet: no progress bar.
    """
    sites = [p.site for layer in layers for p in layer.projections.values() if p.site in run.sites]
    typical = typical_sizes(run, list(dict.fromkeys(sites)), batches, quiet)
    weights = attention_weights(run)
    spaces = head_spaces(layers, weights)
    overlap = {"weights": overlaps(spaces)}
    if (own := live_weights(run, layers, typical, ALIVE_MEAN_CI)) is not None:
        overlap["live subcomponents"] = overlaps(head_spaces(layers, own))
    found = [_layer(run, layer, typical, longest) for layer in layers]
    scored = tuple(layer for layer in layers if any(layer.decomposed(run, role) is not None for role in ("q", "k")))
    prompt = [] if tokens is None or not scored else prompt_scores(run, scored, tokens, masking)
    return Study(typical, found, spaces, overlap, prompt)


def _layer(run: Run, layer: AttentionLayer, typical: Typical, longest: int) -> LayerStudy:
    fractions: dict[Role, Fractions] = {}
    order: dict[Role, Sequence[int]] = {}
    for role in ROLES:
        own, pieces, end = head_fractions(run, layer, role), layer.decomposed(run, role), layer.projections[role]
        if own is None or pieces is None:
            continue
        writes = np.asarray(pieces.U, np.float64)
        lengths = np.linalg.norm(writes if role == "o" else writes[:, end.columns], axis=1)
        fractions[role], order[role] = own, typical.largest(end.site, lengths, len(lengths)).tolist()
    pairs = query_key_pairs(run, layer, typical, longest), value_output_pairs(run, layer, typical)
    return LayerStudy(layer, *pairs, fractions, order)


def pair_rows(study: Study, top: int, of: Callable[[LayerStudy], Pairs | None], roles: tuple[Role, Role]) -> list[Row]:
    """The strongest pairs of each layer with the head and the offset where they are strongest."""
    rows: list[Row] = []
    for own in study.layers:
        pairs = of(own)
        if pairs is None:
            continue
        for i, j in pairs.strongest(top):
            head, place = pairs.peak(i, j)
            ends = (own.layer.projections[role].site for role in roles)
            names = [f"{site}:{c}" for site, c in zip(ends, (pairs.first[i], pairs.second[j]), strict=True)]
            rows.append(
                {
                    "layer": own.layer.path,
                    roles[0]: names[0],
                    roles[1]: names[1],
                    "head": head,
                    **({"offset": int(pairs.offsets[place])} if len(pairs.offsets) > 1 else {}),
                    "typical": float(pairs.typical[head, i, j, place]),
                    "interaction": float(pairs.interaction[head, i, j, place]),
                }
            )
    return rows


def span_rows(study: Study) -> list[Row]:
    """Every subcomponent that does anything on data, with the part of it in each head."""
    rows: list[Row] = []
    for own in study.layers:
        for role, fractions in own.fractions.items():
            site, spanned = own.layer.projections[role].site, heads_spanned(fractions)
            for c in own.order[role]:
                facts: Row = {
                    "layer": own.layer.path,
                    "projection": role,
                    "subcomponent": f"{site}:{c}",
                    "mean_ci": float(study.typical.mean_ci[site][c]),
                    "heads_spanned": float(spanned[c]),
                    "head": int(np.argmax(fractions[c])),
                }
                rows.append(facts | {f"head_{h}": float(x) for h, x in enumerate(fractions[c])})
    return rows


def overlap_rows(study: Study) -> list[Row]:
    """Every ordered pair of heads."""
    rows: list[Row] = []
    for source, maps in study.overlap.items():
        for i, first in enumerate(study.spaces.names):
            for j, second in enumerate(study.spaces.names):
                values = {kind: float(matrix[i, j]) for kind, matrix in maps.items()}
                rows.append({"of": source, "head": first, "other": second, **values})
    return rows


def prompt_rows(study: Study, top: int) -> list[Row]:
    """The pairs that shape each head's pattern most on the prompt."""
    rows: list[Row] = []
    for own in study.prompt:
        summary = own.summary
        for head in range(own.layer.heads.n_heads):
            for i, j in summary.strongest(top, head):
                rows.append(
                    {
                        "layer": own.layer.path,
                        "head": head,
                        "q": own.queries.labels[i],
                        "k": own.keys.labels[j],
                        "pattern": float(summary.pattern[head, i, j]),
                        "size": float(summary.size[head, i, j]),
                    }
                )
    return rows
