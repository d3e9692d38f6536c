"""Public data sets have one name, whatever a collection calls them."""

from __future__ import annotations

import json
import pathlib

import pytest

from hyperflax.data.vocabularies import Bytes
from hyperflax.evaluation.contamination import TRAINING_DATA_SETS, record, trained_elsewhere
from hyperflax.evaluation.runner import EvaluationTask
from hyperflax_tasks import metaicl, natural_instructions, p3
from hyperflax_tasks.data_sets import data_sets, shared_name


@pytest.mark.parametrize(
    ("names", "shared"),
    [
        (("super_glue_rte", "glue-rte", "superglue-rte", "rte"), "rte"),
        (("super_glue_wsc_fixed", "wscfixed", "wsc", "mwsc", "enhanced_wsc", "winograd_wsc"), "wsc"),
        (("anli_dev_r2", "anli"), "anli"),
        (("winogrande_winogrande_xl", "wino_grande", "winogrande"), "winogrande"),
        (("story_cloze_2016", "storycloze", "story_cloze", "roc_stories", "rocstories"), "story_cloze"),
        (("tweet_eval-hate", "hateeval"), "tweet_eval"),
        (("quartz", "quartz-with_knowledge", "quartz-no_knowledge"), "quartz"),
        (("cos_e_v1_11", "commonsenseqa", "commonsense_qa"), "commonsense_qa"),
        (("kilt_tasks_hotpotqa", "kilt_hotpotqa", "hotpot_qa", "hotpotqa"), "hotpotqa"),
        (("paws_labeled_final", "paws"), "paws"),
        (("glue_mrpc", "glue-mrpc", "mrpc"), "mrpc"),
        (("qasc", "unifiedqa:qasc", "unifiedqa:qasc_with_ir"), "qasc"),
        (("openbookqa_main", "openbookqa", "unifiedqa:openbookqa_with_ir"), "openbookqa"),
        (("trec", "trec-finegrained"), "trec"),
        (("common_gen", "commongen"), "common_gen"),
        (("glue-mnli", "multinli"), "mnli"),
        (("numer_sense", "numersense"), "numer_sense"),
        (("sms_spam", "sms_spam_collection_v.1"), "sms_spam"),
        (("tweet_qa", "tweetqa"), "tweet_qa"),
        (("piqa", "unifiedqa:physical_iqa"), "piqa"),
        (("social_i_qa", "unifiedqa:social_iqa"), "social_i_qa"),
        (("race_high", "unifiedqa:race_string"), "race"),
        (("kilt_nq", "natural_questions", "unifiedqa:natural_questions_with_dpr_para"), "natural_questions"),
        (("squad_v2", "squad-with_context", "squad-no_context", "unifiedqa:squad1_1", "unifiedqa:squad2"), "squad"),
    ],
)
def test_names_of_one_data_set_are_one(names: tuple[str, ...], shared: str) -> None:
    assert {shared_name(name) for name in names} == {shared}


def test_different_data_sets_stay_apart() -> None:
    apart = ("wiki_qa", "wiki_bio", "wiki_hop_original", "race-high", "ethos-race", "cb", "copa", "glue", "super_glue")
    assert len({shared_name(name) for name in apart}) == len(apart)
    assert data_sets("p3", ["", "glue_qqp", "qqp"]) == ("p3/qqp",)


def test_sources_of_a_task_file(tmp_path: pathlib.Path) -> None:
    task = {
        "Definition": "d",
        "Categories": ["c"],
        "Positive Examples": [],
        "Instances": [{"input": "a", "output": "b"}],
    }
    for given, found in (([" wsc; enhanced_wsc"], ("wsc", "enhanced_wsc")), ("snli", ("snli",)), ([""], ()), (3, ())):
        (path := tmp_path / "task.json").write_text(json.dumps({**task, "Source": given}))
        assert natural_instructions.read_task_file(path).sources == found
    path.write_text(json.dumps(task))
    assert natural_instructions.read_task_file(path).sources == ()


def test_real_collections_share_what_they_share(materialised: pathlib.Path) -> None:
    """T0's training data against MetaICL's and Super-NaturalInstructions' test tasks, by their own files."""
    trained = record([p3.p3_source(materialised / "p3", "train", Bytes(), 1)])
    assert {"p3/ag_news", "p3/quarel", "p3/mrpc"} <= set(trained[TRAINING_DATA_SETS])
    held_out = metaicl.metaicl_source(materialised / "metaicl", "hr_to_lr", "test_100", Bytes())
    tasks = [
        EvaluationTask(name, (), (), data_sets=held_out.info(number).data_sets)
        for number, name in enumerate(held_out.task_names)
    ]
    found = trained_elsewhere(trained, tasks)
    assert {"quarel", "dream"} & set(held_out.task_names) <= set(found)
    assert not {"glue-rte", "superglue-cb", "superglue-copa"} & set(found)  # T0 holds them out, too
    instructions = natural_instructions.natural_instructions_source(
        materialised / "natural-instructions", "test", Bytes(), 1
    )
    winogrande = instructions.info(instructions.task_names.index("task034_winogrande_question_modification_object"))
    assert winogrande.data_sets == ("natural_instructions/winogrande",)
