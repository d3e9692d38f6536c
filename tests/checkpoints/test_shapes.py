"""The table of parameter shapes: against the model, and as a judge of checkpoints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.checkpoints import check_shapes, infer_t5_config
from hyperflax.checkpoints.shapes import check_unseen, expected_shapes, shape_problems
from hyperflax.errors import CheckpointError
from hyperflax.models.t5 import T5
from hyperflax.types import T5Config

BASE = T5Config(
    vocab_size=64, emb_dim=16, num_heads=3, head_dim=8, mlp_dim=40, num_encoder_layers=2, num_decoder_layers=3
)
CONFIGS = {
    "T5 1.1": BASE,
    "T5 1.0": BASE.replace(mlp_activations=("relu",), logits_via_embedding=True),
    "per layer": BASE.replace(relative_bias="per_layer"),
    "scanned": BASE.replace(scan_layers=True),
    "scanned, per layer": BASE.replace(scan_layers=True, relative_bias="per_layer", num_buckets=16),
}


def tree_of(config: T5Config) -> dict:
    return trees.unflatten({path: np.zeros(shape, np.float32) for path, shape in expected_shapes(config).items()})


@pytest.mark.parametrize("name", CONFIGS)
def test_table_is_what_the_model_has(name):
    tokens = jnp.ones((1, 4), jnp.int32)
    model = T5(CONFIGS[name])
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, tokens))
    flat = trees.flatten(dict(variables["params"]))
    assert {path: leaf.shape for path, leaf in flat.items()} == expected_shapes(CONFIGS[name])


def test_known_size_of_t5_1_1_small():
    config = T5Config(vocab_size=32128, emb_dim=512, num_heads=6, head_dim=64, mlp_dim=1024)
    assert sum(int(np.prod(shape)) for shape in expected_shapes(config).values()) == 76_961_152


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_comes_back_from_the_shapes(name):
    config = CONFIGS[name]
    assert infer_t5_config(tree_of(config)) == config
    check_shapes(tree_of(config), config)


def test_what_shapes_cannot_tell_can_be_given():
    config = infer_t5_config(tree_of(BASE), mlp_activations=("silu", "linear"), max_distance=64)
    assert config == BASE.replace(mlp_activations=("silu", "linear"), max_distance=64)
    with pytest.raises(CheckpointError, match="num_head"):
        infer_t5_config(tree_of(BASE), num_head=3)


def test_two_names_of_one_activation_are_no_difference():
    silu, swish = (BASE.replace(mlp_activations=(name, "linear")) for name in ("silu", "swish"))
    check_unseen(silu, swish, where="here")
    check_unseen(swish, silu, where="here")
    with pytest.raises(CheckpointError, match=r"here: mlp_activations: expected \('gelu', 'linear'\), found \('s"):
        check_unseen(swish, BASE, where="here")


def test_every_difference_is_listed_with_expected_and_found():
    flat = trees.flatten(tree_of(BASE))
    del flat["encoder/encoder_norm/scale"]
    flat["decoder/layers_1/mlp/wo/kernel"] = np.zeros((16, 40))
    flat["decoder/layers_3/mlp/wo/kernel"] = np.zeros((40, 16))
    problems = shape_problems(trees.unflatten(flat), BASE)
    assert problems == [
        "'decoder/layers_1/mlp/wo/kernel': expected shape (40, 16), found (16, 40)",
        "'decoder/layers_3/mlp/wo/kernel': unexpected leaf, found shape (40, 16)",
        "'encoder/encoder_norm/scale': expected shape (16,), the leaf is missing",
    ]
    with pytest.raises(CheckpointError) as caught:
        check_shapes(trees.unflatten(flat), BASE, where="here")
    assert str(caught.value).startswith("here: 3 leaves")
    assert all(problem in str(caught.value) for problem in problems)


@pytest.mark.parametrize(
    ("path", "leaf", "told"),
    [
        ("token_embedder/embedding", None, "token_embedder/embedding"),
        ("token_embedder/embedding", np.zeros(3), "token_embedder/embedding"),
        ("encoder/layers_0/attention/query/kernel", np.zeros((16, 25)), "25 attention features"),
        ("encoder/relpos_bias/rel_embedding", None, "layers_0/relpos_bias"),
        ("decoder/relpos_bias/rel_embedding", np.zeros((4, 32)), r"expected shape \(3, 32\), found \(4, 32\)"),
        ("encoder/layers_0/mlp/wi_2/kernel", np.zeros((16, 40)), "wi_2"),
        ("encoder/layers_5/mlp/wo/kernel", np.zeros((40, 16)), "layers_2.*missing"),
        ("decoder/layers_1/mlp/wo/kernel", None, "decoder/layers_1/mlp/wo/kernel"),
    ],
)
def test_trees_of_no_t5(path, leaf, told):
    flat = trees.flatten(tree_of(BASE))
    if leaf is None:
        del flat[path]
    else:
        flat[path] = leaf
    with pytest.raises(CheckpointError, match=told):
        infer_t5_config(trees.unflatten(flat))
