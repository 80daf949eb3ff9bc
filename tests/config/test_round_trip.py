"""Whatever is read can be dumped and read back: a property over made-up configurations."""

from typing import Any

from good_file import Document, edited
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vocabulary import LOSSES

from vpd.config import changed_fields, dump_run_file, read_run_file
from vpd.config.document import parse_document

_positive = st.floats(1e-30, 1e6)
_fraction = st.floats(0, 0.99)
_names = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=20)
_schedules = st.fixed_dictionaries(
    {
        "start_val": _positive,
        "warmup_pct": st.floats(0, 0.9),
        "fn_type": st.sampled_from(["linear", "cosine"]),
        "final_val_frac": _fraction,
    }
)
_optimizers = st.fixed_dictionaries({"lr_schedule": _schedules, "betas": st.tuples(_fraction, _fraction).map(list)})
_terms = st.sampled_from(sorted(LOSSES)).flatmap(
    lambda name: st.fixed_dictionaries({"type": st.just(name), "coeff": _positive}).map(
        lambda term: {**LOSSES[name], **term}
    )
)
_pd: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "steps": st.integers(100, 10**9),
        "sampling": st.sampled_from(["continuous", "binomial"]),
        "use_delta_component": st.booleans(),
        "tied_weights": st.sampled_from([None, [], [["linear1", "linear2"]]]),
        "components_optimizer": _optimizers,
        "loss_metrics": st.lists(_terms, min_size=1, max_size=5, unique_by=lambda term: term["type"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(pd=_pd, run_name=st.none() | _names, group=_names, dispatch=st.just("auto") | st.integers(1, 50))
def test_a_dump_reads_back_equal(pd: dict[str, Any], run_name: str | None, group: str, dispatch: object) -> None:
    def edit(document: Document) -> None:
        document["pd"].update(pd)
        document.update(run_name=run_name, out_dir=group, runtime={"steps_per_dispatch": dispatch})

    config = read_run_file(edited(edit)).config
    again = read_run_file(parse_document(dump_run_file(config), "dump")).config
    assert again == config
    changes = changed_fields(config, again)
    assert changes.trajectory == changes.other == ()
