"""Episodes: what stands where, disjointness, purity, mixing, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflax.data.episode_plan import make_plan
from hyperflax.data.episodes import EpisodeConfig, Episodes, evaluation_episode, make_episodes
from hyperflax.data.examples import Example, InMemorySource, TaskExamples, TaskInfo
from hyperflax.data.rendering import episode_arrays
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import ConfigError, DataError

SIZES = (6, 9, 40)
S0, S1 = 383, 382  # the byte vocabulary's first two sentinels


def numbered_source(sizes: tuple[int, ...] = SIZES, **changes) -> InMemorySource:
    """Example i of task t is "t,i" -> "t.i": its text says where it comes from."""
    tasks = {f"task{t}": [(f"{t},{i}", f"{t}.{i}") for i in range(size)] for t, size in enumerate(sizes)}
    return InMemorySource.from_strings(tasks, Bytes(), **changes)


def origins(batch: dict[str, np.ndarray], at: int) -> tuple[list[str], list[str]]:
    """The inputs in the support and among the scored examples of one episode, as text."""
    vocabulary = Bytes()
    shown = []
    for row in batch["support_tokens"][at]:
        for piece in "".join("|" if i == S0 else ";" if i == S1 else vocabulary.decode([i]) for i in row).split("|")[
            1:
        ]:
            shown.append(piece.split(";")[0])
    return shown, [vocabulary.decode(row) for row in batch["encoder_input_tokens"][at]]


configs = st.builds(
    EpisodeConfig,
    tasks_per_batch=st.integers(1, 5),
    shots=st.integers(1, 3),
    min_shots=st.sampled_from([None, 1]),
    examples=st.integers(1, 3),
    support_length=st.sampled_from([16, 64]),
    support_layout=st.sampled_from(["separate", "joint"]),
)


@settings(deadline=None)
@given(config=configs, seed=st.integers(0, 2**63), step=st.integers(0, 2**40))
def test_support_and_scored_examples_are_disjoint_and_of_one_task(config: EpisodeConfig, seed: int, step: int) -> None:
    source = numbered_source()
    batch = make_episodes(source, config, seed, step)
    for at in range(config.tasks_per_batch):
        shown, scored = origins(batch, at)
        assert len(set(scored)) == config.examples
        assert len(set(shown)) == len(shown) <= config.shots
        assert not set(shown) & set(scored)
        assert {text.split(",")[0] for text in shown + scored} == {str(batch["task_index"][at])}
        if config.min_shots is None and config.support_length == 64:
            assert len(shown) == config.shots


@settings(deadline=None)
@given(config=configs, seed=st.integers(0, 2**63), step=st.integers(0, 2**40))
def test_batches_are_pure_in_seed_and_step(config: EpisodeConfig, seed: int, step: int) -> None:
    source = numbered_source()
    whole = make_episodes(source, config, seed, step)
    episodes = Episodes(source, config, seed)
    episodes.batch(step + 1)
    again = episodes.batch(step)
    for key, value in whole.items():
        assert np.array_equal(value, again[key])


def test_features_have_the_promised_shapes_and_types() -> None:
    config = EpisodeConfig(
        tasks_per_batch=2, shots=3, examples=2, support_length=20, inputs_length=10, targets_length=8
    )
    batch = make_episodes(numbered_source(), config, 0, 0)
    shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert shapes == {
        "support_tokens": ((2, 3, 20), "int32"),
        "task_index": ((2,), "int32"),
        "encoder_input_tokens": ((2, 2, 10), "int32"),
        "decoder_input_tokens": ((2, 2, 8), "int32"),
        "decoder_target_tokens": ((2, 2, 8), "int32"),
        "decoder_loss_weights": ((2, 2, 8), "float32"),
    }


def test_drawing_shots_covers_the_range() -> None:
    config = EpisodeConfig(tasks_per_batch=200, shots=3, min_shots=0, examples=1)
    support = make_episodes(numbered_source(), config, 0, 0)["support_tokens"]
    counts = np.bincount((support[:, :, 0] > 0).sum(axis=1), minlength=4)
    # Each of 4 values is drawn 50 times in the mean, with a standard deviation of 6.1.
    assert counts.sum() == 200
    assert (np.abs(counts - 50) < 5 * 6.1).all()


PAIR, OTHER = Example(np.array([50]), np.array([60])), Example(np.array([51, 52]), np.array([61]))
INFO = TaskInfo(definition=np.array([70, 71]), positives=(Example(np.array([80]), np.array([81])),) * 3)


def layout(**changes) -> EpisodeConfig:
    return EpisodeConfig(shots=2, examples=1, support_length=14, inputs_length=15, targets_length=3).replace(**changes)


def test_separate_rows() -> None:
    config = layout(definition="support", positives="support")
    arrays = episode_arrays([PAIR, OTHER], [OTHER], config, Bytes(), INFO)
    assert [row[row > 0].tolist() for row in arrays["support_tokens"]] == [
        [70, 71, 1],
        [S0, 80, S1, 81, 1],
        [S0, 80, S1, 81, 1],
        [S0, 50, S1, 60, 1],
        [S0, 51, 52, S1, 61, 1],
    ]
    assert arrays["encoder_input_tokens"][0, :4].tolist() == [51, 52, 1, 0]
    assert arrays["decoder_target_tokens"].tolist() == [[61, 1, 0]]


def test_joint_row_packs_whole_demonstrations_up_to_the_budget() -> None:
    config = layout(support_layout="joint", definition="support")
    arrays = episode_arrays([PAIR, OTHER], [OTHER], config, Bytes(), INFO)
    assert arrays["support_tokens"].tolist() == [[70, 71, S0, 50, S1, 60, S0, 51, 52, S1, 61, 1, 0, 0]]
    short = config.replace(support_length=11)  # the second demonstration would need 12
    arrays = episode_arrays([PAIR, OTHER], [OTHER], short, Bytes(), INFO)
    assert arrays["support_tokens"].tolist() == [[70, 71, S0, 50, S1, 60, 1, 0, 0, 0, 0]]


def rows_of(config: EpisodeConfig, support: list[Example], info: TaskInfo) -> list[list[int]]:
    return episode_arrays(support, [PAIR], config, Bytes(), info)["support_tokens"].tolist()


def test_a_definition_in_the_same_row_counts() -> None:
    config = layout(support_layout="joint", definition="support", support_length=7)
    with pytest.raises(DataError, match=r"demonstration 1: expected at most 7 tokens.* got 8"):
        episode_arrays([PAIR, OTHER], [PAIR], config, Bytes(), INFO)
    source = InMemorySource([TaskExamples("a", [PAIR, PAIR, OTHER, PAIR], INFO)], Bytes())
    with pytest.raises(DataError, match="task 'a', example 2: does not fit, it takes 8 of support_length=7"):
        make_plan(source, config)
    assert make_plan(source, config.replace(too_long="skip")).eligible[0].tolist() == [0, 1, 3]
    # With definitions cut, half of the row is left to demonstrations, and nothing is cut that fits.
    assert rows_of(config.replace(too_long="truncate", support_length=14), [PAIR, OTHER], INFO) == rows_of(
        config.replace(support_length=14), [PAIR, OTHER], INFO
    )
    seven = INFO._replace(definition=np.arange(70, 77))
    assert rows_of(config.replace(too_long="truncate", support_length=12), [PAIR], seven) == [
        [*range(70, 77), S0, 50, S1, 60, 1]
    ]
    long = INFO._replace(definition=np.arange(70, 90))
    cut = config.replace(too_long="truncate", support_length=10)
    assert episode_arrays([PAIR], [PAIR], cut, Bytes(), long)["support_tokens"].tolist() == [
        [70, 71, 72, 73, 74, S0, 50, S1, 60, 1]
    ]


def test_truncation_keeps_definition_input_and_sentinels() -> None:
    config = layout(definition="inputs", demonstrations="support", too_long="truncate", inputs_length=9)
    long = Example(np.arange(50, 60), np.array([61]))
    for definition, expected in (
        ([70, 71], [70, 71, S0, 50, 51, 52, 53, S1, 1]),
        ([70, 71, 72, 73, 74], [70, 71, 72, S0, 50, 51, 52, S1, 1]),
    ):
        info = TaskInfo(definition=np.array(definition))
        assert episode_arrays([PAIR], [long], config, Bytes(), info)["encoder_input_tokens"].tolist() == [expected]
    info = TaskInfo(definition=np.arange(70, 80))
    assert episode_arrays([PAIR], [PAIR], config, Bytes(), info)["encoder_input_tokens"].tolist() == [
        [70, 71, 72, 73, 74, S0, 50, S1, 1]
    ]


def test_context_stands_before_the_inputs_where_asked() -> None:
    config = layout(definition="inputs", positives="none", demonstrations="both")
    arrays = episode_arrays([PAIR], [OTHER], config, Bytes(), INFO)
    assert arrays["encoder_input_tokens"].tolist() == [[70, 71, S0, 50, S1, 60, S0, 51, 52, S1, 1, 0, 0, 0, 0]]
    assert arrays["support_tokens"][0, :5].tolist() == [S0, 50, S1, 60, 1]
    config = layout(definition="none", positives="inputs", demonstrations="support", num_positives=1)
    arrays = episode_arrays([PAIR], [PAIR], config, Bytes(), INFO)
    assert arrays["encoder_input_tokens"][0, :8].tolist() == [S0, 80, S1, 81, S0, 50, S1, 1]


@pytest.mark.parametrize("told", ["definition", "demonstrations"])
def test_a_teacher_reads_what_stands_before_the_inputs(told: str) -> None:
    source = numbered_source(definitions={f"task{t}": f"rule {t}" for t in range(len(SIZES))})
    plain = EpisodeConfig(tasks_per_batch=4, shots=2, examples=2, inputs_length=32, teacher_length=48)
    before = plain.replace(inputs_length=48, **{told: "inputs" if told == "definition" else "both"})
    for step in range(3):
        batch = make_episodes(source, plain.replace(teacher=told), 0, step)
        wanted = make_episodes(source, before, 0, step)["encoder_input_tokens"]
        np.testing.assert_array_equal(batch["teacher_input_tokens"], wanted)
        student = make_episodes(source, plain, 0, step)
        assert batch.keys() - student.keys() == {"teacher_input_tokens"}
        assert all(np.array_equal(batch[name], student[name]) for name in student)


def test_other_supports_are_disjoint_and_change_nothing_else() -> None:
    source = numbered_source((12, 20))
    config = EpisodeConfig(tasks_per_batch=5, shots=2, examples=3, supports=3)
    for step in range(5):
        batch, plain = (make_episodes(source, c, 1, step) for c in (config, config.replace(supports=1)))
        others = batch.pop("other_support_tokens")
        assert others.shape == (5, 2, 2, config.support_length)
        assert batch.keys() == plain.keys()
        assert all(np.array_equal(batch[name], plain[name]) for name in plain)
        for at in range(5):
            shown, scored = origins(batch, at)
            again = [origins({**batch, "support_tokens": others[:, i]}, at)[0] for i in range(2)]
            drawn = [*shown, *scored, *again[0], *again[1]]
            assert len(drawn) == len(set(drawn)) == 9
            assert len({text.split(",")[0] for text in drawn}) == 1  # all of one task


def test_several_supports_need_more_examples() -> None:
    with pytest.raises(DataError, match=r"expected at least 7 examples \(2 x K=2 \+ Q=3\), got 6"):
        make_plan(numbered_source(), EpisodeConfig(shots=2, examples=3, supports=2))


def test_a_teacher_row_is_cut_where_it_does_not_fit() -> None:
    config = layout(teacher="definition", inputs_length=5, teacher_length=6)
    arrays = episode_arrays([PAIR], [PAIR], config, Bytes(), INFO._replace(definition=np.arange(70, 90)))
    assert arrays["teacher_input_tokens"].tolist() == [[70, 71, S0, 50, S1, 1]]


def test_a_teacher_needs_a_definition() -> None:
    config = EpisodeConfig(shots=2, examples=2, teacher="definition")
    with pytest.raises(DataError, match="task 'task0': expected a definition, which the teacher is to read"):
        make_plan(numbered_source(), config)
    plan = make_plan(numbered_source(definitions={"task1": "rule"}), config.replace(too_few="skip"))
    assert plan.tasks.tolist() == [1]
    assert plan.skipped_tasks.keys() == {"task0", "task2"}


def test_a_teacher_that_reads_less_than_it_should_is_told_of() -> None:
    """A row as long as the inputs has no room for what the teacher reads beside them."""
    with pytest.raises(ConfigError, match=r"EpisodeConfig.teacher_length: expected more than inputs_length=64"):
        EpisodeConfig(teacher="definition", teacher_length=64)
    pairs = [("x" * n, "y") for n in (5, 20, 5, 5, 20)]
    source = InMemorySource.from_strings({"letters": pairs}, Bytes(), definitions={"letters": "d" * 10})
    config = EpisodeConfig(shots=2, examples=2, inputs_length=24, teacher="definition", teacher_length=33)
    assert make_plan(source, config).cut_teacher == 0  # 10 of definition, 20 of input, two sentinels, end
    short = make_plan(source, config.replace(teacher_length=32))
    assert short.cut_teacher == 2
    assert "no room for all that the teacher reads before 2 of them" in short.summary()
    shown = config.replace(teacher="demonstrations")  # 2 x (11 + 1 + 2) of demonstrations on average
    assert make_plan(source, shown.replace(teacher_length=28 + 23)).cut_teacher == 0
    assert make_plan(source, shown.replace(teacher_length=28 + 22)).cut_teacher == 2


def test_tasks_are_drawn_in_proportion_to_their_capped_size() -> None:
    config = EpisodeConfig(tasks_per_batch=4000, shots=1, examples=1, task_cap=10)
    counts = np.bincount(make_episodes(numbered_source(), config, 0, 0)["task_index"], minlength=3)
    expected = np.array([6, 9, 10]) / 25
    deviation = np.sqrt(4000 * expected * (1 - expected))
    assert (np.abs(counts - 4000 * expected) < 5 * deviation).all()


def test_mixing_rates_rule_over_sizes() -> None:
    pair = Example(np.array([50]), np.array([60]))
    tasks = [
        TaskExamples(f"t{i}", [pair] * size, group=group) for i, (size, group) in enumerate([(4, 0), (12, 0), (5, 1)])
    ]
    plan = make_plan(InMemorySource(tasks, Bytes(), group_rates=[1.0, 3.0]), EpisodeConfig(shots=1, examples=1))
    # component 0 has a quarter, split 4 : 12; component 1 has three quarters.
    assert plan.cumulative.tolist() == pytest.approx([0.0625, 0.25, 1.0])


def test_too_few_examples_are_named_or_counted() -> None:
    source = numbered_source((9, 4))
    with pytest.raises(DataError, match=r"task 'task1': expected at least 6 examples \(K=4 \+ Q=2\), got 4"):
        make_plan(source, EpisodeConfig(shots=4, examples=2))
    plan = make_plan(source, EpisodeConfig(shots=4, examples=2, too_few="skip"))
    assert plan.tasks.tolist() == [0]
    assert "1 tasks left out (first: 'task1': expected at least 6" in plan.summary()
    with pytest.raises(DataError, match="expected at least one usable task out of 2"):
        make_plan(source, EpisodeConfig(shots=40, examples=2, too_few="skip"))


def long_source() -> InMemorySource:
    pairs = [("x" * n, "y") for n in (5, 30, 5, 5, 5)]
    return InMemorySource.from_strings({"letters": pairs}, Bytes())


@pytest.mark.parametrize("tight", [{"support_length": 20}, {"inputs_length": 20}])
def test_over_long_examples_are_named_or_counted(tight: dict[str, int]) -> None:
    config = EpisodeConfig(shots=2, examples=2).replace(**tight)
    takes = r"34 of support_length=\d+, 31 of inputs_length=\d+, 2 of targets_length=64"
    with pytest.raises(DataError, match=f"task 'letters', example 1: does not fit, it takes {takes}"):
        make_plan(long_source(), config)
    plan = make_plan(long_source(), config.replace(too_long="skip"))
    assert plan.eligible[0].tolist() == [0, 2, 3, 4]
    assert plan.skipped_examples == {"letters": 1}
    assert "1 over-long examples of 1 tasks left out" in plan.summary()


def test_a_positive_that_is_not_shown_may_be_too_long() -> None:
    long = Example(np.full(20, 80), np.array([81]))
    task = TaskExamples("t", [PAIR, OTHER, PAIR], INFO._replace(positives=(INFO.positives[0], long)))
    source, config = InMemorySource([task], Bytes()), layout(positives="support", num_positives=1)
    assert Episodes(source, config).batch(0)["support_tokens"][0, 0, :5].tolist() == [S0, 80, S1, 81, 1]
    with pytest.raises(DataError, match="task 't', positive example 1: expected at most 14 tokens, got 24"):
        Episodes(source, config.replace(num_positives=2))


def test_truncation_cuts_scored_inputs_but_no_demonstration() -> None:
    config = EpisodeConfig(shots=2, examples=3, inputs_length=20, support_length=64, too_long="truncate")
    batch = make_episodes(long_source(), config.replace(tasks_per_batch=50), 0, 0)
    full = batch["encoder_input_tokens"][..., -1]
    assert set(full.ravel().tolist()) == {0, 1}  # a cut row still ends with end of sequence
    lengths = {int((row > 0).sum()) for row in batch["support_tokens"].reshape(-1, 64)}
    assert lengths == {5 + 4, 30 + 4}


def test_a_demonstration_too_long_for_its_row_is_never_cut() -> None:
    long = Example(np.full(30, 50), np.array([60]))
    for support_layout in ("separate", "joint"):
        config = layout(support_layout=support_layout, too_long="truncate")
        with pytest.raises(DataError, match=r"task 'mine', demonstration 1: expected at most 14 tokens.*got 34"):
            episode_arrays([PAIR, long], [PAIR], config, Bytes(), name="mine")


def test_evaluation_scores_the_same_examples_under_every_draw_of_the_support() -> None:
    source, config = numbered_source(), EpisodeConfig(shots=3, examples=4)
    draws = [evaluation_episode(source, 2, config, seed=0, draw=draw) for draw in range(5)]
    assert len({episode.scored for episode in draws}) == 1
    assert len({episode.support for episode in draws}) == 5
    for episode in draws:
        assert not set(episode.support) & set(episode.scored)
        assert episode.references == tuple((f"2.{i}",) for i in episode.scored)
        assert origins({key: value[None] for key, value in episode.arrays.items()}, 0) == (
            [f"2,{i}" for i in episode.support],
            [f"2,{i}" for i in episode.scored],
        )


def test_evaluation_depends_on_the_task_alone() -> None:
    config = EpisodeConfig(shots=3, examples=4)
    alone = InMemorySource.from_strings({"task2": [(f"2,{i}", f"2.{i}") for i in range(40)]}, Bytes())
    a, b = evaluation_episode(numbered_source(), 2, config, 5, 1), evaluation_episode(alone, 0, config, 5, 1)
    assert (a.support, a.scored) == (b.support, b.scored)


def test_evaluation_of_the_first_examples() -> None:
    config = EpisodeConfig(shots=2, examples=10)
    episode = evaluation_episode(numbered_source(), 2, config, 0, first=True)
    assert episode.scored == tuple(range(10))
    assert min(episode.support) >= 10
    with pytest.raises(DataError, match="expected 10 scored examples besides 2 of support, got 9 examples"):
        evaluation_episode(numbered_source(), 1, config, 0, first=True)
    fewer = evaluation_episode(numbered_source(), 1, config, 0, first=True, allow_fewer=True)
    assert fewer.scored == tuple(range(7))
    assert fewer.arrays["decoder_loss_weights"][7:].sum() == 0


def sized_source(*lengths: int) -> InMemorySource:
    """One task whose examples have inputs of these lengths and targets of one token."""
    return InMemorySource.from_strings({"sized": [("x" * n, "y") for n in lengths]}, Bytes())


@pytest.mark.parametrize("first", [False, True])
def test_examples_that_can_be_shown_are_kept_for_the_support(first: bool) -> None:
    """Six of ten fit a support row. All that the support leaves are scored: the long ones, and four that would fit."""
    source = sized_source(5, 40, 5, 40, 5, 40, 5, 40, 5, 5)
    config = EpisodeConfig(shots=2, examples=10, support_length=20, too_long="truncate")
    for seed in range(20):
        episode = evaluation_episode(source, 0, config, seed, first=first, allow_fewer=True)
        assert sorted(episode.support + episode.scored) == list(range(10))
        assert not {1, 3, 5, 7} & set(episode.support)
        if first:
            assert sorted(episode.support) == [8, 9]
    with pytest.raises(DataError, match="expected 9 scored examples besides 2 of support, got 10 examples"):
        evaluation_episode(source, 0, config.replace(examples=9), 0, first=first)
    with pytest.raises(DataError, match="of which 10 are short enough to be scored and 6 to be shown"):
        evaluation_episode(source, 0, config.replace(shots=7), 0, first=first, allow_fewer=True)


@settings(deadline=None)
@given(
    lengths=st.lists(st.sampled_from([5, 40]), min_size=1, max_size=12),
    shots=st.integers(0, 3),
    examples=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_what_is_scored_changes_only_where_the_support_would_be_short(
    lengths: list[int], shots: int, examples: int, seed: int
) -> None:
    """Scored examples are the first of an order that is the same for every config, as long as enough others remain."""
    config = EpisodeConfig(shots=0, examples=len(lengths), support_length=20, too_long="truncate")
    source = sized_source(*lengths)
    order = evaluation_episode(source, 0, config, seed).scored
    showable = {i for i, n in enumerate(lengths) if n == 5 or not shots}
    wanted = order[: min(examples, len(lengths) - shots)] if len(lengths) > shots else ()
    config = config.replace(shots=shots, examples=examples)
    if len(showable - set(wanted)) >= shots and wanted:
        assert evaluation_episode(source, 0, config, seed, allow_fewer=True).scored == wanted
    elif len(showable) < shots or len(lengths) <= shots:
        with pytest.raises(DataError, match="'sized': expected"):
            evaluation_episode(source, 0, config, seed, allow_fewer=True)
    else:
        episode = evaluation_episode(source, 0, config, seed, allow_fewer=True)
        assert set(episode.support) <= showable - set(episode.scored)
        assert len(episode.support) == shots
        assert len(episode.scored) == min(examples, len(lengths) - shots)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": -1}, "shots: expected a whole number of at least 0, got -1"),
        ({"examples": 0}, "examples: expected a whole number of at least 1"),
        ({"shots": 2, "min_shots": 3}, r"min_shots: expected an int from 0 to 2 \(shots\), got 3"),
        ({"shots": 2, "min_shots": 1.0}, r"min_shots: expected an int from 0 to 2 \(shots\), got 1.0"),
        ({"support_layout": "mixed"}, "support_layout: expected one of"),
        ({"definition": "top"}, "definition: expected one of"),
        ({"teacher": "support"}, "teacher: expected one of"),
        ({"too_long": "cut"}, "too_long: expected one of"),
    ],
)
def test_config_refuses(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EpisodeConfig(**changes)


def test_sources_refuse_nonsense() -> None:
    with pytest.raises(DataError, match="task 'empty': expected at least one example"):
        InMemorySource.from_strings({"empty": []}, Bytes())
    with pytest.raises(DataError, match="expected at least one task"):
        InMemorySource.from_strings({}, Bytes())
    with pytest.raises(DataError, match="expected unique task names"):
        InMemorySource([TaskExamples("a", [PAIR]), TaskExamples("a", [PAIR])], Bytes())
    with pytest.raises(DataError, match=r"expected token ids in \[0, 384\), got 50 to 999"):
        InMemorySource([TaskExamples("a", [Example(np.array([50]), np.array([999]))])], Bytes())
    with pytest.raises(DataError, match="definitions of tasks that are not there"):
        InMemorySource.from_strings({"a": [("b", "c")]}, Bytes(), {"z": "do it"})
    with pytest.raises(DataError, match="task 'task0': expected an index below 6, got 6"):
        numbered_source().example(0, 6)
