"""Runs side by side: the steps of each are those of optax alone, and every number of a run is its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.soft_prompt import SoftPrompt
from hyperflax.data.batches import text_batch
from hyperflax.errors import ConfigError
from hyperflax.models import memory
from hyperflax.models.decoding import decode
from hyperflax.models.t5 import T5
from hyperflax.objectives.token_loss import token_loss
from hyperflax.training import trials as module
from hyperflax.training.information_gain import informative, num_kept
from hyperflax.training.step import sum_over_microbatches
from hyperflax.training.trials import Hyper, Recipe, Trials, epoch_rows, learning_rate, num_steps
from hyperflax.types import T5Config

CONFIG = T5Config(
    vocab_size=24, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)
SPEC = build_spec(LoRA(rank=2, sites=("*/query", "*/value")), CONFIG)
STEPS = 12


@pytest.fixture(scope="module")
def model():
    tokens = np.ones((1, 4), np.int32)
    return T5(CONFIG), jax.jit(T5(CONFIG).init)(jax.random.key(0), tokens, tokens)["params"]


def data(count: int = 10, seed: int = 0):
    rng = np.random.default_rng(seed)
    pairs = [(rng.integers(3, 20, 3), rng.integers(3, 20, rng.integers(1, 4))) for _ in range(count)]
    return text_batch(pairs, inputs_length=5, targets_length=5, batch_size=count + 1)


def hyper(**values) -> Hyper:
    given = {
        "learning_rate": [0.02, 0.05],
        "schedule": [2, 0],
        "warmup": [0.25, 0.0],
        "total_steps": [STEPS, STEPS],
        "prompt_steps": [0, 0],
        "weight_decay": [0.1, 0.0],
        "seed": [0, 1],
        **values,
    }
    whole = ("schedule", "prompt_steps", "seed")
    return Hyper(**{name: np.array(value, np.int32 if name in whole else np.float32) for name, value in given.items()})


def stacked(*trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def starts(spec=SPEC, count=2):
    return stacked(*(jax.tree.map(np.asarray, spec.init(jax.random.key(number))) for number in range(count)))


def run(trials, values, *, parts=(STEPS,), seed=0):
    both = stacked(data(seed=0), data(seed=1))
    rows = np.stack([epoch_rows(np.arange(10), 4, 5, seed=number + seed) for number in range(2)])[:, :STEPS]
    state, at = trials.start(starts(trials.recipe.spec)), 0
    for steps in parts:
        state, _ = trials.run(state, values, both, rows[:, at : at + steps])
        at += steps
    return state, both, rows


def test_learning_rates_by_hand():
    """Warm-up over 4 of 12 steps; then x = (t - 4) / 8 is 0, 1/2 and 1."""
    steps = np.array([0, 3, 4, 8, 12])
    many = hyper(learning_rate=[1.0] * 5, warmup=[1 / 3] * 5, total_steps=[12] * 5, schedule=[0] * 5)
    for schedule, expected in ((0, [0.25, 1, 1, 1, 1]), (1, [0.25, 1, 1, 0.5, 0]), (2, [0.25, 1, 1, 0.5, 0])):
        rates = learning_rate(many._replace(schedule=np.full(5, schedule)), jnp.asarray(steps, jnp.float32))
        np.testing.assert_allclose(rates, expected, atol=1e-6)


@pytest.mark.parametrize(("name", "parts"), [("adamw", 1), ("lion", 1), ("adamw", 4)])
def test_each_run_takes_the_steps_of_optax_alone(model, monkeypatch, name, parts):
    """optax.adamw / lion with the same schedule, clipping and batches, one run at a time, in a plain loop; and the same
    where memory is short, so that the four examples of a step follow each other."""
    taken = []
    monkeypatch.setattr(memory, "AT_ONCE", memory.kept_bytes(CONFIG, 2 * 4, 5, 5) // parts)
    monkeypatch.setattr(
        module, "sum_over_microbatches", lambda *given: taken.append(given[-1]) or sum_over_microbatches(*given)
    )
    values = hyper()
    state, both, rows = run(Trials(*model, Recipe(SPEC, name)), values)
    assert set(taken) == {parts}
    make = {"adamw": optax.scale_by_adam, "lion": optax.scale_by_lion}[name]
    for number in range(2):
        one = jax.tree.map(lambda value, number=number: jnp.asarray(value[number : number + 1]), values)
        optimizer = optax.chain(
            optax.clip_by_global_norm(1.0),
            make(),
            optax.add_decayed_weights(float(values.weight_decay[number])),
            optax.scale_by_learning_rate(lambda step, one=one: learning_rate(one, jnp.asarray([step]))[0]),
        )
        params = jax.tree.map(lambda leaf, number=number: jnp.asarray(leaf[number]), starts())
        opt_state = optimizer.init(params)

        @jax.jit
        def step(params, opt_state, batch, optimizer=optimizer):
            def loss(params):
                logits = model[0].apply(
                    {"params": model[1], "adapters": SPEC.materialise(params)},
                    *(batch[f"{part}_tokens"] for part in ("encoder_input", "decoder_input", "decoder_target")),
                )
                out = token_loss(logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"])
                return out.loss_sum / out.weight_sum

            updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        for row in rows[number]:
            params, opt_state = step(params, opt_state, {key: array[number][row] for key, array in both.items()})
        for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(ours[number], theirs, atol=2e-5)


def test_a_run_in_parts_is_the_run_in_one(model):
    trials = Trials(*model, Recipe(SPEC, "adafactor", dropout=0.1))
    whole, _, _ = run(trials, hyper())
    parts, _, _ = run(trials, hyper(), parts=(1, 5, 6))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_follows_the_seed(model):
    trials = Trials(*model, Recipe(SPEC, dropout=0.3))
    one, other = (run(trials, hyper(seed=[seed, 1]))[0].params for seed in (0, 7))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a[1], b[1])
    assert any(not np.array_equal(a[0], b[0]) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def test_compiling_takes_no_step(model):
    trials = Trials(*model, Recipe(SPEC))
    both, state = stacked(data(), data()), trials.start(starts())
    trials.compile(state, hyper(), both, np.zeros((2, 4, 3), np.int32))
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(starts()), strict=True):
        np.testing.assert_array_equal(a, b)
    assert state.step.tolist() == [0, 0]


def test_a_prompt_is_tuned_first_and_then_kept(model):
    spec = build_spec((LoRA(rank=2), SoftPrompt(length=3)), CONFIG)
    trials = Trials(*model, Recipe(spec, prompt_first=True))
    values = hyper(prompt_steps=[5, 5], weight_decay=[0.1, 0.1])
    begin, prompted, end = starts(spec), *(run(trials, values, parts=(steps,))[0].params for steps in (5, STEPS))
    prompt = [tree["encoder"].pop("soft_prompt")["embedding"] for tree in (begin, prompted, end)]
    assert not np.array_equal(prompt[0], prompt[1])
    np.testing.assert_array_equal(prompt[1], prompt[2])
    for a, b, c in zip(*map(jax.tree.leaves, (begin, prompted, end)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(b, c)


def test_what_follows_a_prompt_begins_with_a_new_optimizer(model):
    """Adam would take moments of five steps without a gradient for old ones, and its steps would be too long."""
    spec = build_spec((LoRA(rank=2), SoftPrompt(length=3)), CONFIG)
    trials, values = Trials(*model, Recipe(spec, prompt_first=True)), hyper(prompt_steps=[5, 5])
    prompted, both, rows = run(trials, values, parts=(5,))
    anew = trials.start(jax.tree.map(np.asarray, prompted.params))._replace(step=np.array([5, 5], np.int32))
    expected, _ = trials.run(anew, values, both, rows[:, 5:])
    found, _, _ = run(trials, values, parts=(5, STEPS - 5))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found.params, expected.params)))


def test_the_score_is_what_decoding_gives(model):
    """An adapter that has learnt its ten examples by heart for the most part, decoded token by token."""
    trials = Trials(*model, Recipe(build_spec(LoRA(rank=8, sites=("*",)), CONFIG)))
    examples = data(6)
    rows = np.stack([epoch_rows(np.arange(6), 6, 150, seed=0)])
    one = jax.tree.map(lambda value: value[:1], hyper(learning_rate=[0.05, 0], total_steps=[150, 150]))
    state, _ = trials.run(trials.start(starts(trials.recipe.spec, 1)), one, stacked(examples), rows)
    exact, _ = trials.score(state.params, stacked(examples))
    assert exact.shape == (1, 6)
    adapters = trials.recipe.spec.materialise(jax.tree.map(lambda leaf: leaf[0], state.params))
    tokens = np.asarray(
        decode(
            model[0], model[1], examples["encoder_input_tokens"][None], adapters=stacked(adapters), max_length=5
        ).tokens
    )[0]
    for row in range(6):
        target = examples["decoder_target_tokens"][row]
        length = np.count_nonzero(target)
        assert exact[0, row] == np.array_equal(tokens[row, : length - 1], target[: length - 1]), row
    assert exact.sum() > 0


def test_padding_to_a_number_of_rows_that_others_share_changes_no_score(model):
    trials, examples = Trials(*model, Recipe(SPEC)), data(5)
    exact, loss = trials.score(starts(SPEC, 1), stacked(examples))
    assert exact.shape == (1, 5)
    raw = jax.tree.map(lambda leaf: leaf[0], starts(SPEC, 1))
    np.testing.assert_allclose(loss[0], mean_loss(model, raw, examples), rtol=1e-6)


@pytest.mark.parametrize("rows", [2, 6])
def test_scores_in_blocks_are_those_at_once(model, monkeypatch, rows):
    trials, (a, b) = Trials(*model, Recipe(SPEC)), (data(7), data(7, seed=1))
    both = starts(SPEC, 2)
    exact, loss = trials.score(both, stacked(a, b))
    monkeypatch.setattr(module, "ROWS", rows)
    in_blocks, loss_in_blocks = trials.score(both, stacked(a, b))
    np.testing.assert_array_equal(in_blocks, exact)
    np.testing.assert_allclose(loss_in_blocks, loss, rtol=1e-6)


def test_no_more_is_scored_at_once_than_its_logits_allow(model, monkeypatch):
    trials, both, rows = Trials(*model, Recipe(SPEC)), stacked(data(7), data(7, seed=1)), []
    losses = trials._losses
    monkeypatch.setattr(
        trials, "_losses", lambda *args: rows.append(args[3]["decoder_target_tokens"].shape) or losses(*args)
    )
    monkeypatch.setattr(module, "ELEMENTS", 4 * 5 * CONFIG.vocab_size)  # of four examples, two of each run
    assert trials.score(starts(SPEC, 2), both)[0].shape == (2, 7)
    assert rows == [(2, 5)]


def mean_loss(model, raw, examples):
    """Loss per token of a raw adapter, written out."""
    inputs = [examples[name] for name in ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")]
    logits = model[0].apply({"params": model[1], "adapters": SPEC.materialise(raw)}, *inputs)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), inputs[2][..., None], axis=-1)[..., 0]
    return -(chosen * examples["decoder_loss_weights"]).sum() / examples["decoder_loss_weights"].sum()


def test_gains_are_inner_products_of_gradients(model):
    trials, raw = Trials(*model, Recipe(SPEC)), jax.tree.map(lambda leaf: leaf[0] + 0.1, starts(SPEC, 1))
    given, objective = data(6), data(4, seed=1)
    gains = trials.gains(raw, given, objective)

    def gradient(examples):
        tree = jax.grad(lambda raw: mean_loss(model, raw, examples))(raw)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    alone = [{name: array[number : number + 1] for name, array in given.items()} for number in range(6)]
    products = [gradient(example) @ gradient(objective) for example in alone]
    assert np.ptp(products) > 1e-3
    np.testing.assert_allclose(gains, products, rtol=1e-4, atol=1e-7)
    trials.gains(raw, data(6, seed=2), objective)
    assert trials._gains._cache_size() == 1  # every run asks what to leave out: one program serves them all


def test_gains_of_many_examples_take_no_more_memory_than_those_of_a_block(model, monkeypatch):
    trials, raw = Trials(*model, Recipe(SPEC)), jax.tree.map(lambda leaf: leaf[0] + 0.1, starts(SPEC, 1))
    given, objective = data(22), data(14, seed=1)
    whole, rows = trials.gains(raw, given, objective), []
    losses = trials._losses
    monkeypatch.setattr(module, "GAINS", 8)
    monkeypatch.setattr(
        trials, "_losses", lambda *args: rows.append(len(args[3]["decoder_target_tokens"])) or losses(*args)
    )
    np.testing.assert_allclose(trials.gains(raw, given, objective), whole, rtol=1e-4, atol=1e-7)
    assert rows == [8, 8]  # a program each for the objective's slope and for the gains


def test_an_epoch_shows_every_example_once():
    rows = epoch_rows(np.array([3, 5, 8, 9]), batch_size=2, epochs=3, seed=0)
    assert rows.shape == (6, 2)
    for epoch in rows.reshape(3, 4):
        assert sorted(epoch) == [3, 5, 8, 9]
    assert epoch_rows(np.arange(3), batch_size=8, epochs=1, seed=0).shape == (1, 8)
    assert (num_steps(4, batch_size=2, epochs=3), num_steps(3, batch_size=8, epochs=1)) == (6, 1)
    np.testing.assert_array_equal(rows, epoch_rows(np.array([3, 5, 8, 9]), batch_size=2, epochs=3, seed=0))


def test_what_is_kept_are_the_examples_that_help_the_objective(model):
    """The last 12 of 24 examples are the objective's own; the others contradict it, with other tokens as targets."""
    trials, raw = Trials(*model, Recipe(SPEC)), jax.tree.map(lambda leaf: leaf[0], starts())
    right = data(12)
    wrong = {
        **right,
        "decoder_target_tokens": right["decoder_target_tokens"] % 17 + 3 * (right["decoder_target_tokens"] > 0),
    }
    both = {name: np.concatenate([wrong[name][:-1], right[name]]) for name in right}
    kept = informative(trials, raw, both, right, share=0.5)
    assert len(kept) == num_kept(24, share=0.5) == 12
    assert np.count_nonzero(kept >= 12) > 6
    gains = trials.gains(raw, both, right)
    assert gains[kept].min() > np.delete(gains, kept).max()
    assert kept.tolist() == sorted(set(kept.tolist()))
    np.testing.assert_array_equal(informative(trials, raw, both, right, share=1.0), np.arange(24))
    np.testing.assert_array_equal(kept, informative(trials, raw, both, right, share=0.5))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"optimizer": "sgd"}, "expected one of adamw, adafactor, lion, got 'sgd'"),
        ({"dropout": 1.0}, r"expected a number in \[0, 1\)"),
        ({"prompt_first": True}, "expected a spec with a soft prompt"),
    ],
)
def test_bad_recipes_are_refused(change, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Recipe(SPEC, **change)
