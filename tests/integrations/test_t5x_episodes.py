"""The feature converter on small seqio data sets, against episodes made by hand. Needs seqio, not T5X."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import ConfigError, DataError
from hyperflax.integrations.t5x_episodes import EpisodeFeatureConverter

VOCABULARY = Bytes(extra_ids=5)
FIRST, SECOND = VOCABULARY.sentinel(0), VOCABULARY.sentinel(1)
CONFIG = EpisodeConfig(shots=1, examples=1, support_length=8, inputs_length=4, targets_length=4)
SKIPS = CONFIG.replace(too_few="skip")
LENGTHS = {"inputs": 32, "targets": 32}


def dataset(*rows: tuple[str, list[int], list[int]], **features: list) -> tf.data.Dataset:
    """Examples (task, inputs, targets), each ending with end of sequence as seqio's do."""

    def examples():
        for number, (task, inputs, targets) in enumerate(rows):
            extra = {name: values[number] for name, values in features.items()}
            yield {"task": task, "inputs": [*inputs, 1], "targets": [*targets, 1], **extra}

    ids = tf.TensorSpec((None,), tf.int32)
    signature = {"task": tf.TensorSpec((), tf.string), "inputs": ids, "targets": ids}
    for name, values in features.items():
        shape = () if isinstance(values[0], str) else (None,)
        signature[name] = tf.TensorSpec(shape, tf.string)
    return tf.data.Dataset.from_generator(examples, output_signature=signature)


def convert(examples: tf.data.Dataset, config: EpisodeConfig = CONFIG) -> list[dict[str, np.ndarray]]:
    converter = EpisodeFeatureConverter(config=config, vocabulary=VOCABULARY)
    return list(converter(examples, LENGTHS).as_numpy_iterator())


def test_examples_are_grouped_by_task_in_their_order():
    rows = [("a", [10], [20]), ("b", [11], [21]), ("b", [12, 13], [22]), ("a", [14], [24, 25]), ("a", [15], [26])]
    of_b, of_a = convert(dataset(*rows))  # the third example of a waits for a fourth
    assert of_b["support_tokens"].tolist() == [[FIRST, 11, SECOND, 21, 1, 0, 0, 0]]
    assert of_b["encoder_input_tokens"].tolist() == [[12, 13, 1, 0]]
    assert of_b["decoder_target_tokens"].tolist() == [[22, 1, 0, 0]]
    assert of_b["decoder_input_tokens"].tolist() == [[0, 22, 1, 0]]
    assert of_b["decoder_loss_weights"].tolist() == [[1, 1, 0, 0]]
    assert of_a["support_tokens"].tolist() == [[FIRST, 10, SECOND, 20, 1, 0, 0, 0]]
    assert of_a["encoder_input_tokens"].tolist() == [[14, 1, 0, 0]]
    assert of_a["decoder_target_tokens"].tolist() == [[24, 25, 1, 0]]


@pytest.mark.parametrize("second", ["Y", ""])
def test_definition_and_positives_stand_in_the_support(second: str):
    """Also one with an empty output, as a task of Super-NaturalInstructions has."""
    config = CONFIG.replace(definition="support", positives="support", num_positives=2)
    rows = [("a", [10], [20]), ("a", [11], [21])]
    (episode,) = convert(
        dataset(
            *rows,
            definition=["do", "do"],
            positive_inputs=[["x", "yy"], ["x", "yy"]],
            positive_targets=[["X", second], ["X", second]],
        ),
        config,
    )
    x, y, big_x, big_y, d, o = (ord(letter) + 3 for letter in "xyXYdo")
    assert episode["support_tokens"].tolist() == [
        [d, o, 1, 0, 0, 0, 0, 0],
        [FIRST, x, SECOND, big_x, 1, 0, 0, 0],
        [FIRST, y, y, SECOND, *([big_y, 1, 0, 0] if second else [1, 0, 0, 0])],
        [FIRST, 10, SECOND, 20, 1, 0, 0, 0],
    ]


def test_an_example_that_does_not_fit_is_named_or_left_out():
    rows = [("a", [10, 10, 10, 10], [20]), ("a", [11], [21]), ("a", [12], [22])]
    with pytest.raises(Exception, match=r"task 'a', example 0: does not fit, it takes"):
        convert(dataset(*rows))
    (episode,) = convert(dataset(*rows), CONFIG.replace(too_long="skip"))
    assert episode["support_tokens"][0, 1] == 11
    assert episode["encoder_input_tokens"][0, 0] == 12


def test_no_episode_shows_what_it_scores():
    """Three epochs of three examples of a and one of b: a's second window runs over the end of the first."""
    a = [("a", [10 + number], [20 + number]) for number in range(3)]
    epochs = [*a, ("b", [11], [21]), a[2], a[0], a[1], ("b", [11], [21]), *a]
    windows = [(e["support_tokens"][0, 1], e["encoder_input_tokens"][0, 0]) for e in convert(dataset(*epochs), SKIPS)]
    assert windows == [(10, 11), (10, 11), (10, 11)]  # and not (12, 12)


def test_a_task_that_repeats_itself_before_it_has_enough_examples_is_named():
    rows = [("a", [10], [20]), ("a", [11], [21]), *4 * [("b", [11], [21]), ("b", [11], [21])]]
    told = r"task 'b': expected at least 2 different examples of a task \(K=1 \+ Q=1\), got 1 again and again"
    with pytest.raises(Exception, match=told):
        convert(dataset(*rows))
    assert len(convert(dataset(*rows), SKIPS)) == 1
    twice = [*2 * [("b", [11], [21])], *2 * [("b", [12], [21])]]
    assert convert(dataset(*8 * twice)) == []  # there are two, though never next to each other


def test_a_stream_that_never_makes_an_episode_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hyperflax.integrations.t5x_episodes._PATIENCE", 5)
    endless = dataset(("a", [10], [20]), ("b", [11], [21])).repeat()
    with pytest.raises(Exception, match=r"got none in 5 times 2 examples of 2 tasks"):
        convert(endless, SKIPS)


def test_a_stream_in_which_nothing_fits_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hyperflax.integrations.t5x_episodes._PATIENCE", 5)
    long, short = ("a", [10] * 9, [20]), ("a", [10], [20])
    skips = SKIPS.replace(too_long="skip")
    told = r"expected an example that fits, got none in 5; the last, of task 'a': takes .*, 10 of inputs_length=4"
    with pytest.raises(Exception, match=told):
        convert(dataset(long).repeat(), skips)
    defined = dataset(long, definition=["as long as can be"]).repeat()
    with pytest.raises(Exception, match="the last, of task 'a': definition of 18 tokens, expected at most 8"):
        convert(defined, skips.replace(definition="support"))
    rows = [long, long, short, *[long] * 9, ("a", [11], [20])]
    assert len(convert(dataset(*rows), skips)) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"supports": 2}, "supports"), ({"min_shots": 0}, "min_shots"), ({"teacher": "demonstrations"}, "teacher")],
)
def test_what_a_stream_cannot_give_is_refused(changes: dict, named: str):
    with pytest.raises(ConfigError, match=rf"EpisodeConfig\.{named}"):
        EpisodeFeatureConverter(config=CONFIG.replace(**changes), vocabulary=VOCABULARY)


def test_packing_is_refused():
    with pytest.raises(ConfigError, match="pack=False"):
        EpisodeFeatureConverter(pack=True, config=CONFIG, vocabulary=VOCABULARY)


def test_examples_without_a_task_are_refused():
    examples = dataset(("a", [10], [20])).map(lambda row: {name: row[name] for name in ("inputs", "targets")})
    with pytest.raises(DataError, match="string feature 'task'"):
        convert(examples)


def test_lengths_that_would_hide_a_long_example_are_refused():
    converter = EpisodeFeatureConverter(config=CONFIG, vocabulary=VOCABULARY)
    with pytest.raises(ConfigError, match=r"TASK_FEATURE_LENGTHS\['inputs'\]: expected more than EpisodeConfig's 4"):
        converter(dataset(("a", [10], [20])), {"inputs": 4, "targets": 32})
    cuts = CONFIG.replace(too_long="truncate")  # a demonstration is as long as the support has room for
    converter = EpisodeFeatureConverter(config=cuts, vocabulary=VOCABULARY)
    with pytest.raises(ConfigError, match=r"TASK_FEATURE_LENGTHS\['targets'\]: expected more than EpisodeConfig's 8"):
        converter(dataset(("a", [10], [20])), {"inputs": 32, "targets": 8})
    converter = EpisodeFeatureConverter(config=cuts.replace(demonstrations="none"), vocabulary=VOCABULARY)
    converter(dataset(("a", [10], [20])), {"inputs": 5, "targets": 5})
