"""A run's T5 is the same whatever form it was stored in, on the host or read onto the mesh."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.checkpoints.forms import Model, load_base, read_model, write_model
from hyperflax.checkpoints.shapes import expected_shapes
from hyperflax.checkpoints.t5_directory import save_t5
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import CheckpointError
from hyperflax.models.session import cast_kernels
from hyperflax.models.stacking import stack_layers
from hyperflax.processes import Processes
from hyperflax.training.base_model import digest, read_base
from hyperflax.training.partitioning import Partitioner, make_mesh
from tests.checkpoints.directories import CONFIG, random_tree

SHAPE = CONFIG.replace(num_encoder_layers=2, num_decoder_layers=2, dtype="bfloat16")
ONTO_MESH = {"t5x", "orbax"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    params, folder = random_tree(expected_shapes(SHAPE), 0), tmp_path_factory.mktemp("stored")
    save_t5(folder / "t5", params, SHAPE, Bytes())
    for form in ("huggingface", "t5x", "orbax"):
        write_model(folder / form, Model("t5", params, SHAPE), form)
    return {name: folder / name for name in ("t5", "huggingface", "t5x", "orbax")}


@pytest.mark.parametrize("dtype", ["bf16", "int32", "float33"])
@pytest.mark.parametrize("form", ["t5", "huggingface", "t5x", "orbax"])
def test_weights_are_cast_to_fractions_alone(form: str, dtype: str, stored) -> None:
    with pytest.raises(CheckpointError, match=f"dtype: expected a floating dtype such as 'float32', got '{dtype}'"):
        read_model(stored[form], dtype=dtype)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("compute_dtype", [False, True])
@pytest.mark.parametrize("form", ["t5", "huggingface", "t5x", "orbax"])
def test_every_form_gives_the_same_arrays(form: str, compute_dtype: bool, scan_layers: bool, stored) -> None:
    partitioner, config = Partitioner(make_mesh(devices=jax.devices()[:1])), SHAPE.replace(scan_layers=scan_layers)
    expected = load_base(stored["t5"], SHAPE)
    expected = cast_kernels(expected, SHAPE) if compute_dtype else expected
    expected = trees.flatten(stack_layers(expected, SHAPE) if scan_layers else expected)
    found = trees.flatten(read_base(str(stored[form]), config, partitioner, compute_dtype=compute_dtype))
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert isinstance(found[path], jax.Array) == (form in ONTO_MESH), path
        assert found[path].dtype == leaf.dtype, path
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    assert digest(trees.unflatten(found)) == digest(load_base(stored["t5"], SHAPE))
    placed = trees.flatten(partitioner.place_frozen(trees.unflatten(found)))
    if form in ONTO_MESH:  # as it is: nothing is copied
        assert all(placed[path] is leaf for path, leaf in found.items())


@pytest.mark.parametrize("form", sorted(ONTO_MESH))
def test_all_processes_read_the_checkpoint_that_the_first_one_found(form, tmp_path, monkeypatch) -> None:
    """The one that the second process finds, a moment later, is not its own choice."""
    for step in (5, 6):
        params = random_tree(expected_shapes(SHAPE), step)
        write_model(tmp_path / f"until_{step}", Model("t5", params, SHAPE, step), form)
    run, told = tmp_path / "until_5", []

    def told_by_first(processes: Processes, text: str) -> str:
        told.append(text)
        return told[0]

    monkeypatch.setattr(Processes, "told_by_first", told_by_first)
    partitioner = Partitioner(make_mesh(devices=jax.devices()[:1]))
    first = digest(read_base(str(run), SHAPE, partitioner))
    (tmp_path / "until_6" / "checkpoint_6").rename(run / "checkpoint_6")
    assert digest(read_base(str(run), SHAPE, partitioner)) == first
    assert ["checkpoint_5" in told[0], "checkpoint_6" in told[1]] == [True, True]


@pytest.mark.parametrize("to", [np.asarray, jnp.asarray])
def test_a_digest_tells_values_places_layers_and_shapes_apart(to) -> None:
    kernel = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    one = {"encoder": {"layers_0": {"wo": kernel}, "layers_1": {"wo": -kernel}}}
    nudged, swapped = kernel.copy(), kernel.copy()
    nudged[2, 1] *= 1 + 2**-7  # the least that bfloat16 tells
    swapped[0, 1], swapped[1, 0] = kernel[1, 0], kernel[0, 1]
    others = [
        {"encoder": {"layers_0": {"wo": nudged}, "layers_1": {"wo": -kernel}}},
        {"encoder": {"layers_0": {"wo": swapped}, "layers_1": {"wo": -kernel}}},
        {"encoder": {"layers_0": {"wo": -kernel}, "layers_1": {"wo": kernel}}},
        {"encoder": {"layers_0": {"wo": kernel.reshape(4, 3)}, "layers_1": {"wo": -kernel}}},
    ]
    known = digest(jax.tree.map(to, one))
    assert known == digest(one)
    assert known == digest({"encoder": {"layers": {"wo": to(np.stack([kernel, -kernel], axis=1))}}})
    assert len({known, *(digest(jax.tree.map(to, other)) for other in others)}) == 5


@pytest.mark.parametrize("form", ["t5", "t5x"])
def test_another_shape_is_refused(form: str, stored) -> None:
    with pytest.raises(CheckpointError, match="mlp/wi_0/kernel"):
        read_base(str(stored[form]), SHAPE.replace(mlp_dim=16), Partitioner())
