"""``decompose`` and ``open_run``: what a reader gets from a run directory, and what it is told where there is none."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tree, write_file

from vpd import ConfigError, RunError, SiteMask, decompose, open_run, read_run_file
from vpd.analysis.run import Run

SITES = ("linear1", "linear2")


@pytest.fixture
def batch() -> jax.Array:
    """Sixteen inputs of five features."""
    return jax.random.uniform(jax.random.key(0), (16, 5), jnp.float32)


def test_decompose_opens_the_finished_run(tiny_run: Run) -> None:
    assert (tiny_run.step, tiny_run.status, tiny_run.sites) == (20, "finished", SITES)
    assert tiny_run.config.pd.steps == 20


def test_causal_importances(tiny_run: Run, batch: jax.Array) -> None:
    for shape in ((16,), (4, 4), ()):
        importances = tiny_run.causal_importances(batch.reshape(-1, 5)[: int(np.prod(shape))].reshape(*shape, 5))
        assert {site: values.shape for site, values in importances.items()} == {site: (*shape, 6) for site in SITES}
        assert all(((values >= 0) & (values <= 1)).all() for values in importances.values())


@pytest.mark.parametrize("sites", [SITES, ("linear1",), ("linear2",), ()])
def test_all_masks_one_and_delta_one_is_the_target(sites: tuple[str, ...], tiny_run: Run, batch: jax.Array) -> None:
    masks = {site: SiteMask(jnp.ones((16, 6)), jnp.ones(16)) for site in sites}
    np.testing.assert_allclose(tiny_run.masked_output(batch, masks), tiny_run.output(batch), atol=1e-6)


def test_masks_without_delta_are_the_components_alone(tiny_run: Run, batch: jax.Array) -> None:
    pieces = tiny_run.components("linear1")
    zero = tiny_run.masked_output(batch, {site: jnp.zeros((16, 6)) for site in SITES})
    bias = tiny_run.experiment.target.bias
    np.testing.assert_allclose(zero, jnp.broadcast_to(jax.nn.relu(bias), (16, 5)), atol=1e-6)
    one = tiny_run.masked_output(batch, {"linear1": jnp.ones((16, 6))})
    hidden = batch @ pieces.V @ pieces.U
    np.testing.assert_allclose(one, jax.nn.relu(hidden @ tiny_run.experiment.target.linear1.T + bias), atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 5), (16, 7), (16, 1), (16,), ()])
def test_a_mask_of_another_number_of_subcomponents(shape: tuple[int, ...], tiny_run: Run, batch: jax.Array) -> None:
    with pytest.raises(RunError, match="C = 6"):
        tiny_run.masked_output(batch, {"linear1": jnp.ones(shape)})


@pytest.mark.parametrize(
    "mask",
    [
        jnp.ones((15, 6)),
        jnp.ones((2, 16, 6)),
        SiteMask(jnp.ones((16, 6)), delta=jnp.ones(15)),
        SiteMask(jnp.ones((16, 6)), routing=jnp.ones((1, 16), bool)),
    ],
    ids=["mask", "more axes", "delta mask", "routing"],
)
def test_a_mask_for_another_batch(mask: jax.Array | SiteMask, tiny_run: Run, batch: jax.Array) -> None:
    with pytest.raises(RunError, match=r"the batch has \(16,\)"):
        tiny_run.masked_output(batch, {"linear1": mask})


@pytest.mark.parametrize("name", ["linear3", "", "linear"])
def test_a_site_that_is_not_decomposed(name: str, tiny_run: Run, batch: jax.Array) -> None:
    with pytest.raises(RunError, match="linear1, linear2"):
        tiny_run.components(name)
    with pytest.raises(RunError, match="linear1, linear2"):
        tiny_run.masked_output(batch, {name: jnp.ones((16, 6))})


def test_open_an_earlier_step(tiny_run: Run, batch: jax.Array) -> None:
    earlier = open_run(tiny_run.path, step=10)
    assert earlier.step == 10
    assert not np.array_equal(earlier.components("linear1").V, tiny_run.components("linear1").V)
    with pytest.raises(RunError, match="there are 10, 20"):
        open_run(tiny_run.path, step=15)


def test_reading_changes_nothing(tiny_run: Run) -> None:
    before = tree(tiny_run.path)
    open_run(str(tiny_run.path))
    open_run(tiny_run.path, step=10)
    assert tree(tiny_run.path) == before


def test_open_while_it_trains(tiny_run: Run, tmp_path: Path) -> None:
    """An unfinished save beside finished ones: the latest finished one is opened."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run.path, run)
    (run / "checkpoints" / "20").rename(run / "checkpoints" / "20.orbax-checkpoint-tmp")
    before = tree(run)
    assert open_run(run).step == 10
    with pytest.raises(RunError, match="no finished checkpoint at step 20"):
        open_run(run, step=20)
    assert tree(run) == before
    shutil.rmtree(run / "checkpoints" / "10")
    with pytest.raises(RunError, match="no finished checkpoint yet"):
        open_run(run)


def test_decompose_again_opens_without_training(tiny_run: Run) -> None:
    before = tree(tiny_run.path)
    again = decompose(tiny_run.config, quiet=True)
    assert (again.path, again.step) == (tiny_run.path, 20)
    assert tree(tiny_run.path) == before


def test_decompose_takes_a_configuration(tiny_run: Run, tmp_path: Path) -> None:
    config = read_run_file(write_file(tmp_path, eval=None)).config
    with jax.numpy_dtype_promotion("standard"):
        run = decompose(config, steps=20, out_dir=tmp_path, run_id="mine", quiet=True)
    assert run.path == tmp_path / "mine"
    for a, b in zip(jax.tree.leaves(run.decomposition), jax.tree.leaves(tiny_run.decomposition), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"seed": -1}, {"run_id": "../x"}, {"out_dir": "a\0b"}])
def test_decompose_refuses_bad_replacements(bad: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises((ConfigError, RunError)):
        decompose(write_file(tmp_path), **bad)  # type: ignore[arg-type]


def test_decompose_outside_the_main_thread(tiny_run: Run, tmp_path: Path) -> None:
    """Signals are the main thread's; a worker thread trains without catching them."""
    from concurrent.futures import ThreadPoolExecutor

    def work() -> int:
        with jax.numpy_dtype_promotion("standard"):
            return decompose(write_file(tmp_path, eval=None), steps=20, out_dir=tmp_path, quiet=True).step

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == 20
