"""hyperflax's own loop against what `python -m t5x.train` did: same batches, same start. Needs no T5X."""

from __future__ import annotations

import numpy as np
import pytest

from hyperflax import trees
from hyperflax.data.examples import Example, TaskInfo, tokenise
from hyperflax.data.rendering import episode_arrays
from tests.integrations import t5x_model, t5x_task
from tests.integrations.t5x_model import CONFIG, STEPS


@pytest.fixture(scope="module")
def goldens() -> dict[str, np.ndarray]:
    return t5x_model.goldens()


def test_our_loop_has_t5x_losses_and_ends_where_t5x_ended(goldens, tmp_path):
    state, rows = t5x_model.train_ourselves(goldens, tmp_path)
    np.testing.assert_allclose([row["loss"] for row in rows], goldens["loss"], rtol=2e-6)
    np.testing.assert_allclose([row["accuracy"] for row in rows], goldens["accuracy"], atol=1e-6)
    start, end = (trees.flatten(t5x_model.branch(goldens, f"{name}/hypernetwork")) for name in ("start", "end"))
    found = trees.flatten(state.params)
    assert found.keys() == end.keys()
    for path, leaf in found.items():
        moved = np.abs(end[path] - start[path]).max()
        np.testing.assert_allclose(leaf, end[path], rtol=0, atol=max(1e-3 * moved, 1e-7), err_msg=path)
    assert max(np.abs(end[path] - start[path]).max() for path in end) > 0.05


def test_t5x_trained_the_hypernetwork_alone(goldens):
    base = trees.flatten(t5x_model.branch(goldens, "end/base"))
    for path, leaf in trees.flatten(t5x_model.branch(goldens, "start/base")).items():
        np.testing.assert_array_equal(base[path], leaf, err_msg=path)


def test_t5x_started_from_the_checkpoint_as_the_assignment_map_says(goldens):
    checkpoint = trees.flatten(t5x_model.branch(goldens, "checkpoint"))
    base = trees.flatten(t5x_model.branch(goldens, "start/base"))
    assert base.keys() == checkpoint.keys()
    for path, leaf in base.items():
        np.testing.assert_array_equal(leaf, checkpoint[path], err_msg=path)
    hypernetwork = trees.flatten(t5x_model.branch(goldens, "start/hypernetwork"))
    for path, leaf in hypernetwork.items():
        if path.startswith("t5/"):
            np.testing.assert_array_equal(leaf, checkpoint[path.removeprefix("t5/")], err_msg=path)
    assert {path.split("/")[0] for path in hypernetwork} == {"t5", "slots", "heads"}
    assert np.std(hypernetwork["slots"]) > 0.5


def test_every_episode_is_of_one_task_and_rendered_as_everywhere(goldens):
    rows = list(t5x_task.rows())
    examples = {name: [] for name in t5x_task.TASKS}
    for row in rows:
        examples[row["task"]].append((row["inputs"], row["targets"]))
    seen = set()
    for step in range(STEPS):
        batch = t5x_model.branch(goldens, f"batch/{step}")
        for number, support in enumerate(batch["support_tokens"]):
            name = CONFIG.vocabulary.decode(support[0].tolist())
            pairs = [_pair(row) for row in support[1:]]
            inputs = [CONFIG.vocabulary.decode(row.tolist()) for row in batch["encoder_input_tokens"][number]]
            targets = [CONFIG.vocabulary.decode(row.tolist()) for row in batch["decoder_target_tokens"][number]]
            scored = list(zip(inputs, targets, strict=True))
            assert set(pairs + scored) <= set(examples[name]), (step, number)
            info = TaskInfo(tokenise(name, CONFIG.vocabulary))
            expected = episode_arrays(
                [_example(pair) for pair in pairs],
                [_example(pair) for pair in scored],
                CONFIG.episodes,
                CONFIG.vocabulary,
                info,
            )
            for feature, array in expected.items():
                np.testing.assert_array_equal(batch[feature][number], array, err_msg=f"{step} {number} {feature}")
            seen.add(name)
    assert seen == set(t5x_task.TASKS)


def _pair(row: np.ndarray) -> tuple[str, str]:
    """The demonstration in a support row: between and behind its two sentinels."""
    first, second = (CONFIG.vocabulary.sentinel(number) for number in (0, 1))
    assert row[0] == first
    middle = int(np.flatnonzero(row == second)[0])
    return CONFIG.vocabulary.decode(row[1:middle].tolist()), CONFIG.vocabulary.decode(row[middle + 1 :].tolist())


def _example(pair: tuple[str, str]) -> Example:
    return Example(*(tokenise(text, CONFIG.vocabulary) for text in pair))
