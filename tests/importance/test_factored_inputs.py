"""Every causal-importance function reads a site input that is a sum of products as it reads the array."""

import jax
import numpy as np
import pytest
from objective.scenes import components_of, filled, jit, normal, pd_of

from vpd.decomposition import Factored
from vpd.importance.build import init_ci_function
from vpd.targets import clean_forward, init_resid_mlp
from vpd.targets.base import dense_inputs
from vpd.training.build import sites_from

SIZE = {"d_model": 8, "n_blocks": 1, "attn_config": {"n_heads": 2}}
FUNCTIONS = {
    "mlp": {"mode": "layerwise", "hidden_dims": [5]},
    "vector_mlp": {"mode": "layerwise", "hidden_dims": [5]},
    "shared_mlp": {"mode": "layerwise", "hidden_dims": [5]},
    "linear": {"mode": "layerwise", "fn_type": "shared_mlp", "hidden_dims": []},
    "global_shared_mlp": {"mode": "global", "hidden_dims": [5]},
    "global_shared_transformer": {"mode": "global", "simple_transformer_ci_cfg": SIZE},
    "chunkwise_transformer": {"mode": "chunkwise", "sites_per_chunk": 2, "simple_transformer_ci_cfg": SIZE},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_factored_input_is_read_like_its_array(name: str) -> None:
    target = filled(lambda _: init_resid_mlp(4, 40, 3, 2, "gelu", True, True))
    sites_named = [{"module_pattern": "*", "C": 4}]
    inserted = [{"module_pattern": "layers.1.mlp_in", "C": 3}]
    pd = pd_of(
        [{"type": "UnmaskedReconLoss", "coeff": 1.0}],
        decomposition_targets=sites_named,
        identity_decomposition_targets=inserted,
        ci_config={"fn_type": name} | FUNCTIONS[name],
    )
    sites = sites_from(pd, target)
    components = components_of(sites)
    ci_fn = filled(lambda key: init_ci_function(pd.ci_config, sites, key))
    _, inputs = jit(clean_forward)(target, normal(6, 4))
    assert isinstance(inputs["layers.1.mlp_in"], Factored) and isinstance(
        inputs["layers.1.mlp_in.pre_identity"], Factored
    )
    evaluate = jit(lambda ci_fn, inputs: ci_fn(inputs, components))
    got, want = evaluate(ci_fn, inputs), evaluate(ci_fn, dense_inputs(inputs))
    assert {s: z.shape for s, z in got.items()} == {s.name: (6, s.C) for s in sites}
    for site in got:
        scale = float(np.abs(want[site]).max())
        np.testing.assert_allclose(got[site] / scale, want[site] / scale, atol=2e-5)
        # It depends on the input: all features at 0 give another answer.
        other = evaluate(ci_fn, jax.tree.map(lambda x: 0 * x, inputs))
        assert np.abs(other[site] - got[site]).max() > 1e-3 * scale
