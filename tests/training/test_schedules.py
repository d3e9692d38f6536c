"""Schedules against T5X's numbers and closed forms."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from hyperflax.errors import ConfigError
from hyperflax.training.optimizers import as_schedule
from hyperflax.training.schedules import learning_rate_schedule, warmup_cosine

WARM = {"base_learning_rate": 0.01, "warmup_steps": 1000}
RSQRT = {"factors": "constant * rsqrt_decay", "base_learning_rate": 1.0, "warmup_steps": 10_000}
# Pretraining's and fine-tuning's settings are those of T5X's run files; the others follow from the arrays themselves.
SETTINGS = {
    "pretrain_default": RSQRT,
    "finetune_default": {"factors": "constant", "base_learning_rate": 0.001},
    "function_default": {},
    "linear_decay": {"factors": "linear_decay", "base_learning_rate": 0.1, "warmup_steps": 1000, "decay_factor": 1e-4},
    "rsqrt_normalized": {"factors": "constant * linear_warmup * rsqrt_normalized_decay", **WARM},
    "decay_every": {"factors": "constant * decay_every", "base_learning_rate": 0.01, "steps_per_decay": 5000},
    "cosine": {"factors": "constant * linear_warmup * cosine_decay", "steps_per_cycle": 50_000, **WARM},
    "offset": {**RSQRT, "step_offset": 50_000},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_t5x(goldens, name):
    arrays = np.load(goldens / "learning_rate_schedules.npz")
    assert set(arrays.files) == {"steps", *SETTINGS}
    schedule = jax.jit(learning_rate_schedule(**SETTINGS[name]))
    found = [schedule(step) for step in arrays["steps"]]
    np.testing.assert_allclose(found, arrays[name], rtol=2e-6, atol=1e-9)


def test_no_warm_up_and_numbers_stand_for_constants():
    assert float(learning_rate_schedule("constant * linear_warmup", 0.5, warmup_steps=0)(0)) == 0.5
    assert float(as_schedule(0.25)(7)) == 0.25


def test_warmup_cosine():
    schedule = jax.jit(warmup_cosine(peak=1e-3, warmup_steps=10, total_steps=110, final_fraction=0.05))
    np.testing.assert_allclose(schedule(0), 1e-4, rtol=1e-6)
    np.testing.assert_allclose(schedule(9), 1e-3, rtol=1e-6)
    np.testing.assert_allclose(schedule(60), 1e-3 * (0.05 + 0.95 / 2), rtol=1e-5)
    np.testing.assert_allclose([schedule(110), schedule(999)], [5e-5, 5e-5], rtol=1e-5)
    with pytest.raises(ConfigError, match="total_steps"):
        warmup_cosine(total_steps=10)


def test_unknown_factor_is_named():
    with pytest.raises(ConfigError, match="unknown 'sqrt_decay'"):
        learning_rate_schedule("constant * sqrt_decay")
