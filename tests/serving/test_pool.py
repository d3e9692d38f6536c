"""The pool of adapters: what is in a slot, and who leaves first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hyperflax import trees
from hyperflax.adapters.full import Full
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.errors import AdapterError, ConfigError
from hyperflax.serving.pool import AdapterPool, powers
from tests.models import t5_cases as cases

SPEC = build_spec((LoRA(rank=2), Prefix(length=2)), cases.MICRO)


def filled(value: float, spec: AdapterSpec = SPEC) -> Any:
    return spec.unflatten({leaf.path: np.full(leaf.shape, value, np.float32) for leaf in spec.leaves})


def pool(slots: int = 2) -> AdapterPool:
    made = AdapterPool(SPEC, cases.MICRO, slots)
    for value in range(1, 6):
        made.add(value, filled(value), SPEC)
    return made


def held(made: AdapterPool, slot: int) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf[slot]) for path, leaf in trees.flatten(made.leaves).items()}


def test_slots_hold_what_was_added() -> None:
    made = pool()
    slots = made.slots_of([3, None, 5, 3])
    assert slots[0] == slots[3]
    assert slots[1] == 0
    for slot, value in ((slots[0], 3.0), (slots[2], 5.0)):
        flat = held(made, slot)
        for leaf in SPEC.leaves:
            np.testing.assert_array_equal(flat[leaf.path], np.full(leaf.shape, value))
        for leaf in SPEC.optional:
            np.testing.assert_array_equal(flat[leaf.path], np.ones(leaf.shape))
    assert not any(array.any() for array in held(made, 0).values())


def test_the_one_used_longest_ago_leaves() -> None:
    made = pool()
    one, two = (made.slots_of([key])[0] for key in (1, 2))
    made.slots_of([1])
    assert made.slots_of([3])[0] == two
    assert made.slots_of([1])[0] == one
    assert made.slots_of([2])[0] == two
    np.testing.assert_array_equal(held(made, two)[SPEC.leaves[0].path], np.full(SPEC.leaves[0].shape, 2.0))


def test_an_adapter_that_did_not_get_there_is_not_taken_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    made = pool()
    kept, left = made.slots_of([1, 2])
    with monkeypatch.context() as broken:
        broken.setattr("hyperflax.serving.pool._write", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            made.slots_of([2, 3])
    slots = made.slots_of([3, 2])
    for slot, value in zip(slots, (3.0, 2.0), strict=True):
        np.testing.assert_array_equal(held(made, slot)[SPEC.leaves[0].path], np.full(SPEC.leaves[0].shape, value))
    assert {kept, left} == set(slots)


def test_those_asked_for_together_stay_together() -> None:
    made = pool()
    made.slots_of([1, 2])
    slots = made.slots_of([2, 3])
    assert len(set(slots)) == 2
    np.testing.assert_array_equal(held(made, slots[0])[SPEC.leaves[0].path], np.full(SPEC.leaves[0].shape, 2.0))


def test_smaller_adapters_are_widened() -> None:
    made = AdapterPool(SPEC, cases.MICRO, 1)
    small = build_spec(Prefix(length=1), cases.MICRO)
    made.add("small", filled(4.0, small), small)
    flat = held(made, made.slots_of(["small"])[0])
    for path, array in flat.items():
        if "lora" in path:
            assert not array.any()
        else:
            np.testing.assert_array_equal(array[0], np.zeros_like(array[0]))
            np.testing.assert_array_equal(array[1], np.ones_like(array[1]) * (1.0 if path.endswith("mask") else 4.0))


def test_replaced_and_removed() -> None:
    made = pool()
    made.slots_of([1])
    made.add(1, filled(9.0), SPEC)
    slot = made.slots_of([1])[0]
    np.testing.assert_array_equal(held(made, slot)[SPEC.leaves[0].path], np.full(SPEC.leaves[0].shape, 9.0))
    made.remove(1)
    assert 1 not in made
    assert len(made) == 4
    with pytest.raises(AdapterError, match="no adapter with the key 1"):
        made.slots_of([1])
    with pytest.raises(AdapterError, match="no adapter with the key 1"):
        made.remove(1)


def test_what_does_not_fit_is_refused() -> None:
    made = pool()
    with pytest.raises(AdapterError, match="3 different adapters at once: expected at most 2"):
        made.slots_of([1, 2, 3])
    large = build_spec(LoRA(rank=3), cases.MICRO)
    with pytest.raises(AdapterError, match="3 slots cannot be narrowed to 2"):
        made.add("large", filled(1.0, large), large)
    other = build_spec(LoRA(rank=1, sites=("*/mlp/wo",)), cases.MICRO)
    with pytest.raises(AdapterError, match="there is no such leaf to widen it to"):
        made.add("other", filled(1.0, other), other)
    with pytest.raises(AdapterError, match="stands for no adapter"):
        made.add(None, filled(1.0), SPEC)
    with pytest.raises(AdapterError, match="merged, not served"):
        AdapterPool(build_spec(Full(), cases.MICRO), cases.MICRO)
    with pytest.raises(ConfigError, match="expected at least 1"):
        AdapterPool(SPEC, cases.MICRO, 0)
    with pytest.raises(ConfigError, match="unrolled"):
        AdapterPool(SPEC, cases.MICRO.replace(scan_layers=True))


def test_bytes_of_one_adapter() -> None:
    assert AdapterPool(SPEC, cases.MICRO, 1).nbytes == 4 * (
        SPEC.num_parameters + sum(leaf.shape[0] for leaf in SPEC.optional)
    )


def test_sizes_that_are_compiled() -> None:
    assert [powers(n) for n in (1, 2, 3, 4, 5)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4], [1, 2, 4, 8]]
