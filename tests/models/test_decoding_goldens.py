"""Decoding gives T5X's tokens, token for token, and its scores."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from hyperflax.models.beam import Beam
from hyperflax.models.decoding import DecodeResult, Method, decode
from hyperflax.models.sampling import Greedy, Sample
from hyperflax.models.stacking import stack_layers
from hyperflax.models.t5 import T5
from tests.models import t5_cases as cases


def run(goldens: pathlib.Path, method: Method, config: cases.T5Config = cases.TINY, **options: Any) -> DecodeResult:
    params = cases.subtree(cases.load(goldens, "tiny_params_init"), "params")
    if config.scan_layers:
        params = stack_layers(params, config)
    tokens = cases.load(goldens, "tiny_inputs")["unpacked/encoder_input_tokens"]
    return decode(T5(config), params, tokens, max_length=24, method=method, **options)


def check(goldens: pathlib.Path, name: str, tokens: jax.Array, scores: jax.Array) -> None:
    expected = cases.load(goldens, "tiny_decode_init")
    np.testing.assert_array_equal(tokens, expected[f"{name}/tokens"])
    cases.assert_close(scores, expected[f"{name}/scores"])


@pytest.mark.parametrize(
    ("name", "alpha", "scan_layers"),
    [("beam4", 0.6, False), ("beam4", 0.6, True), ("beam4_alpha0.0", 0.0, False), ("beam4_alpha1.0", 1.0, False)],
)
def test_beam_search(goldens: pathlib.Path, name: str, alpha: float, scan_layers: bool) -> None:
    result = run(goldens, Beam(4, alpha), cases.TINY.replace(scan_layers=scan_layers))
    check(goldens, name, result.all_tokens, result.all_scores)
    np.testing.assert_array_equal(result.tokens, result.all_tokens[:, -1])


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("beam1", Beam(1, 0.6)),
        ("greedy_topk1", Sample(topk=1)),
        ("greedy_temp0", Sample(temperature=0.0)),
        ("greedy_topk1_rawlogp", Sample(topk=1, rescale_log_probs=False)),
        ("greedy_topk1_rawlogp", Greedy()),
    ],
)
def test_one_sequence(goldens: pathlib.Path, name: str, method: Method) -> None:
    result = run(goldens, method, rng=jax.random.PRNGKey(0))
    check(goldens, name, result.tokens, result.scores)


def test_prompted(goldens: pathlib.Path) -> None:
    inputs = cases.load(goldens, "tiny_decode_init")["greedy_prompted/decoder_input_tokens"]
    result = run(goldens, Sample(temperature=0.0), prompt_tokens=inputs[:, 1:], rng=jax.random.PRNGKey(0))
    check(goldens, "greedy_prompted", result.tokens, result.scores)


def test_sampled(goldens: pathlib.Path) -> None:
    method = Sample(temperature=0.8, topk=20, num_decodes=3)
    result = run(goldens, method, rng=jax.random.PRNGKey(7))
    check(goldens, "sample_t0.8_k20_n3_key7", result.all_tokens, result.all_scores)
