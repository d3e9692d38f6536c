"""P3 as seqio Tasks and their Mixture: the same examples as without seqio, T0's rates, and what reads them."""

from __future__ import annotations

import pathlib
from collections import Counter

import gin
import numpy as np
import pytest

from hyperflax.data import commands
from hyperflax.data.cache_source import CachedSource
from hyperflax.data.episodes import EpisodeConfig
from hyperflax.data.examples import InMemorySource
from hyperflax.data.seqio_source import list_seqio, load_seqio
from hyperflax.data.vocabularies import Bytes, SentencePiece, Vocabulary
from hyperflax.evaluation.contamination import TRAINING_DATA_SETS, record
from hyperflax_tasks import metaicl, natural_instructions, p3, seqio_tasks
from tests.tasks.test_p3 import row, write

seqio = pytest.importorskip("seqio", reason="seqio is not installed: pip install 'hyperflax[seqio]'")

pytestmark = pytest.mark.usefixtures("seqio_registries")

# What T0's rule makes of them: a ninth of 500,000, all examples that T0's list counts, and all that are at hand.
RATES = {
    "amazon_polarity_would_you_buy": 55_555,
    "amazon_polarity_user_satisfied": 55_555,
    "glue_mrpc_replace": 3_668,
    "imdb_Reviewer_Enjoyment": 25_000,
    "my-own_prompt": 20,
}
HELD_OUT = ("super_glue_cb_can_we_infer", "super_glue_copa_choose")


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    for name in RATES:
        write(tmp_path, f"{name}/train.jsonl", *(row(f"{name} {i}?", f" answer {i}") for i in range(20)))
    for name in HELD_OUT:
        write(tmp_path, f"{name}/validation.jsonl", *(row(f"{name} {i}?", " No", "Yes", "No") for i in range(5)))
    return tmp_path


@pytest.fixture
def t5(data_dir: pathlib.Path) -> SentencePiece:
    return SentencePiece(data_dir / "vocab" / "spiece.model")


def task(prompt_task: str) -> str:
    return f"p3_{prompt_task.replace('-', '_')}"


def texts(source: InMemorySource, vocabulary: Vocabulary) -> dict[str, list[list[str]]]:
    """{task: its examples as inputs, targets and options}."""
    decode = vocabulary.decode
    return {
        name: [
            [decode(e.inputs), decode(e.targets), *map(decode, e.options)]
            for e in source.examples(number, range(int(source.sizes[number])))
        ]
        for number, name in enumerate(source.task_names)
    }


def test_training_prompt_tasks_are_those_without_seqio(root: pathlib.Path, t5: SentencePiece) -> None:
    write(root, "trec_trec1/train.jsonl", row("Who?", ""))  # nothing to learn from it
    seqio_tasks.register_p3(root, t5)
    ours = texts(p3.p3_source(root, "train", t5), t5)
    assert texts(load_seqio("p3_train"), t5) == {f"{task(name)}/{name}": ours[name] for name in RATES}
    assert texts(load_seqio("p3_imdb_Reviewer_Enjoyment"), t5) == {
        "imdb_Reviewer_Enjoyment": ours["imdb_Reviewer_Enjoyment"]
    }


def test_held_out_prompt_tasks_are_those_without_seqio(root: pathlib.Path, t5: SentencePiece) -> None:
    seqio_tasks.register_p3(root, t5)
    ours, theirs = p3.p3_source(root, "held_out", t5), load_seqio("p3_held_out", "held_out")
    assert texts(theirs, t5) == texts(ours, t5)
    assert theirs.task_names == HELD_OUT
    for number in range(len(HELD_OUT)):
        assert theirs.info(number).category == ours.info(number).category
        assert theirs.info(number).data_sets == ours.info(number).data_sets != ()
        assert theirs.info(number).positives == ()


def test_supports_of_held_out_prompt_tasks_come_from_their_training_examples(root: pathlib.Path) -> None:
    """The first 64, as in the suite, which takes them from there where all prompt-tasks have some."""
    for name in HELD_OUT:
        write(root, f"{name}/train.jsonl", *(row(f"{name} {i}?", f" shown {i}") for i in range(70)))
    seqio_tasks.register_p3(root, Bytes())
    suite = p3.suite(root)
    assert suite.support == "positives"
    ours, theirs = suite.sources["held_out"](Bytes()), load_seqio("p3_held_out", "held_out")
    for number, name in enumerate(HELD_OUT):
        shown = [[Bytes().decode(p.inputs), Bytes().decode(p.targets)] for p in theirs.info(number).positives]
        assert shown == [[f"{name} {i}?", f"shown {i}"] for i in range(64)]
        assert shown == [[Bytes().decode(p.inputs), Bytes().decode(p.targets)] for p in ours.info(number).positives]
    assert not {task(name) for name in HELD_OUT} & set(seqio.TaskRegistry.names())


def test_a_record_of_the_mixture_holds_its_data_sets(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Those without seqio, from a token cache, too; a prompt-task of no known data set has none."""
    seqio_tasks.register_p3(root, Bytes())
    ours, mixture = p3.p3_source(root, "train", Bytes()), load_seqio("p3_train")
    commands.cache_mixture("p3_train", tmp_path / "cache")
    expected = ["p3/amazon_polarity", "p3/imdb", "p3/mrpc"]
    for source in (ours, mixture, CachedSource(tmp_path / "cache")):
        assert record([source])[TRAINING_DATA_SETS] == expected
    assert mixture.info(mixture.task_names.index("p3_my_own_prompt/my-own_prompt")).data_sets == ()


def test_the_mixture_has_t0s_rates(root: pathlib.Path) -> None:
    """Here, in seqio, and in what draws episodes from it; the examples at hand are equally many."""
    seqio_tasks.register_p3(root, Bytes())
    mixture = seqio.get_mixture_or_task("p3_train")
    assert {one.name: mixture.get_rate(one) for one in mixture.tasks} == {task(name): r for name, r in RATES.items()}
    source = load_seqio("p3_train")
    names = [name.partition("/")[2] for name in source.task_names]
    assert dict(zip(names, source.group_rates[source.groups], strict=True)) == RATES


def test_the_mixture_delivers_examples_at_its_rates(root: pathlib.Path) -> None:
    seqio_tasks.register_p3(root, Bytes())
    drawn = 4000
    rows = seqio.get_mixture_or_task("p3_train").get_dataset(None, "train", shuffle=True, seed=0).take(drawn)
    found = Counter(one["task"].decode() for one in rows.as_numpy_iterator())
    for name, rate in RATES.items():
        share = rate / sum(RATES.values())
        assert abs(found[name] - drawn * share) < 4 * np.sqrt(drawn * share * (1 - share)) + 1, name


def test_a_run_takes_the_mixture_by_name(
    root: pathlib.Path, data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5X's macros, from the shipped run to a batch; over 50 batches tasks come at the rates."""
    for other in (natural_instructions, metaicl):
        monkeypatch.delenv(other.ROOT_VARIABLE, raising=False)
    monkeypatch.setenv(p3.ROOT_VARIABLE, str(root))
    monkeypatch.setenv("HYPERFLAX_VOCABULARY", str(data_dir / "vocab" / "spiece.model"))
    bindings = {
        "MODEL_DIR": "x",
        "INITIAL_CHECKPOINT_PATH": "x",
        "VOCABULARY_FILE": str(data_dir / "vocab" / "spiece.model"),
        "MIXTURE_OR_TASK_NAME": "p3_train",
        "MIXTURE_OR_TASK_MODULE": "hyperflax_tasks.seqio_tasks",
    }
    gin.clear_config()
    files = ["hyperflax_gin_configs/runs/p3_hypermodel.gin"]
    gin.parse_config_files_and_bindings(files, [f"{name} = {value!r}" for name, value in bindings.items()])
    with gin.config_scope("training"):
        episodes = gin.get_configurable("hyperflax.data.episodes.Episodes")()
    tasks = np.concatenate([episodes.batch(step)["task_index"] for step in range(50)])
    names = [name.partition("/")[2] for name in episodes.source.task_names]
    for number, name in enumerate(names):
        share = RATES[name] / sum(RATES.values())
        assert abs(np.mean(tasks == number) - share) < 4 * np.sqrt(share / len(tasks)) + 1 / len(tasks), name


@pytest.mark.parametrize("pack", [False, True])
def test_t5xs_own_converter_takes_the_mixture(root: pathlib.Path, pack: bool) -> None:
    """Multi-task training of a plain T5: the feature `task`, which the Mixture keeps, is not in its way."""
    seqio_tasks.register_p3(root, Bytes())
    batches = seqio.get_dataset(
        "p3_train",
        {"inputs": 64, "targets": 16},
        dataset_split="train",
        shuffle=True,
        seed=0,
        feature_converter=seqio.EncDecFeatureConverter(pack=pack),
    )
    batch = next(batches.as_numpy_iterator())
    target = batch["decoder_target_tokens"]
    assert Bytes().decode(target[: target.tolist().index(1)]).startswith("answer ")
    assert batch["encoder_input_tokens"].shape == (64,)


def test_t5x_trains_hypermodels_on_the_mixture(root: pathlib.Path) -> None:
    """An episode's support and scored examples are of one prompt-task."""
    from hyperflax.integrations.t5x_episodes import EpisodeFeatureConverter

    seqio_tasks.register_p3(root, Bytes())
    lengths = {"inputs": 128, "targets": 64}
    config = EpisodeConfig(shots=2, examples=1, support_length=128, inputs_length=64, targets_length=16)
    rows = seqio.get_mixture_or_task("p3_train").get_dataset(lengths, "train", shuffle=True, seed=0)
    episodes = EpisodeFeatureConverter(config=config, vocabulary=Bytes())(rows, lengths).take(20).as_numpy_iterator()
    for episode in episodes:
        asked = Bytes().decode(episode["encoder_input_tokens"][0]).split()[0]
        assert asked in RATES
        for shown in episode["support_tokens"]:
            assert asked in Bytes().decode(shown)


@pytest.mark.parametrize(
    ("file", "tasks", "mixtures"),
    [
        ("super_glue_cb_can_we_infer/validation.jsonl", {"p3_held_out"}, set()),
        ("imdb_Reviewer_Enjoyment/train.jsonl", {"p3_imdb_Reviewer_Enjoyment"}, {"p3_train"}),
    ],
)
def test_a_side_that_is_not_there_is_left_out(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, file: str, tasks: set[str], mixtures: set[str]
) -> None:
    """Everything that is registered can be listed, which reads none of it: the count of many files takes minutes."""
    write(tmp_path, file, row("x", "no", "no", "yes"))
    seqio_tasks.register_p3(tmp_path, Bytes())
    monkeypatch.setattr(p3, "read_file", lambda *given, **more: pytest.fail("a listing reads no file"))
    listed = [one for one in list_seqio() if one[0].startswith("p3_")]
    assert {name for name, _, kind, *_ in listed if kind == "seqio task"} == tasks
    assert {name for name, _, kind, *_ in listed if kind == "seqio mixture"} == mixtures
    assert {examples for *_, examples, _ in listed} == {None}


def test_a_second_root_takes_the_place_of_the_first(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    seqio_tasks.register_p3(root, Bytes())
    write(tmp_path / "other", "imdb_Reviewer_Enjoyment/train.jsonl", row("x", "y"))
    seqio_tasks.register_p3(tmp_path / "other", Bytes())
    assert texts(load_seqio("p3_train"), Bytes()) == {"imdb_Reviewer_Enjoyment": [["x", "y"]]}
