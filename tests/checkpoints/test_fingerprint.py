"""What makes two fingerprints equal, and what does not."""

from __future__ import annotations

import hashlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hyperflax import trees
from hyperflax.checkpoints import fingerprint, support_hash
from hyperflax.errors import CheckpointError, DataError

KEYS = st.text("abcxyz_019", min_size=1, max_size=6)
DTYPES = st.sampled_from([np.float32, np.float16, np.int32, np.bool_, ml_dtypes.bfloat16])


def arrays() -> st.SearchStrategy[np.ndarray]:
    raw = hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), elements=st.integers(-9, 9)
    )
    return st.builds(lambda array, dtype: array.astype(dtype), raw, DTYPES)


TREES = st.dictionaries(
    KEYS, arrays() | st.dictionaries(KEYS, arrays(), min_size=1, max_size=3), min_size=1, max_size=4
)


def reverse(tree):
    return {key: reverse(tree[key]) for key in reversed(tree)} if isinstance(tree, dict) else tree


def test_documented_form():
    """The bytes that are hashed, written out: saved adapters depend on them for ever."""
    tree = {"b": {"c": np.array([1, -2], np.int32)}, "a": np.array(1.5, np.float32)}
    stream = b"hyperflax tree 1\n"
    stream += b'["a", "float32", []]\n' + bytes.fromhex("0000c03f")
    stream += b'["b/c", "int32", [2]]\n' + bytes.fromhex("01000000feffffff")
    assert fingerprint(tree) == "sha256:" + hashlib.sha256(stream).hexdigest()
    assert (
        support_hash([{"target": "B", "input": "ä"}])
        == "sha256:" + hashlib.sha256(b'hyperflax support 1\n{"input": "\\u00e4", "target": "B"}\n').hexdigest()
    )


@settings(deadline=None, max_examples=40)
@given(TREES)
def test_order_memory_layout_and_library_make_no_difference(tree):
    expected = fingerprint(tree)
    assert fingerprint(reverse(tree)) == expected
    assert (
        fingerprint(trees.map_with_path(lambda _, leaf: np.asfortranarray(leaf).reshape(leaf.shape), tree)) == expected
    )
    assert fingerprint(trees.map_with_path(lambda _, leaf: np.repeat(leaf[None], 2, 0)[1], tree)) == expected
    assert fingerprint(trees.map_with_path(lambda _, leaf: jnp.asarray(leaf), tree)) == expected


def test_big_endian_makes_no_difference():
    array = np.arange(5, dtype=np.float32)
    assert fingerprint({"a": array.astype(">f4")}) == fingerprint({"a": array})


@settings(deadline=None)
@given(TREES, TREES)
def test_equal_only_for_equal_trees(one, other):
    def content(tree):
        flat = trees.flatten(tree)
        return {path: (leaf.dtype.name, leaf.shape, leaf.tobytes()) for path, leaf in flat.items()}

    assert (fingerprint(one) == fingerprint(other)) == (content(one) == content(other))


def test_path_dtype_shape_and_value_count():
    array = np.ones(4, np.float32)
    seen = [
        {"a": array},
        {"b": array},
        {"a": {"a": array}},
        {"a": array.astype(ml_dtypes.bfloat16)},
        {"a": array.view(np.int32)},
        {"a": array.reshape(2, 2)},
        {"a": array.reshape(4, 1)},
        {"a": np.array([1, 1, 1, 2], np.float32)},
        {"a": array * 0},
        {"a": array * -0.0},
        {"a": array[:2], "b": array[2:]},
    ]
    assert len({fingerprint(tree) for tree in seen}) == len(seen)


@pytest.mark.parametrize(
    "leaf",
    [1.0, None, [1, 2], "text", np.array(["a"]), np.array([None]), np.zeros(2, [("x", "f4")]), np.zeros(2, "V4")],
)
def test_leaves_that_are_no_numbers(leaf):
    with pytest.raises(CheckpointError, match="'w/x'"):
        fingerprint({"w": {"x": leaf}})


def test_empty_tree():
    with pytest.raises(CheckpointError, match="empty"):
        fingerprint({})


def test_support_hash_knows_order_and_text():
    one, two = {"input": "a", "target": "b"}, {"input": "c", "target": "d"}
    hashes = [[one, two], [two, one], [one], [], [{"input": "ab", "target": ""}], [{"input": "a", "target": "b "}]]
    assert len({support_hash(examples) for examples in hashes}) == len(hashes)
    assert support_hash([dict(reversed(one.items()))]) == support_hash([one])
    for bad in ([{"input": 1, "target": "b"}], ["ab"], [("a", "b")]):
        with pytest.raises(DataError, match="example 0"):
            support_hash(bad)
