"""Which data sets T0 holds out, and under which templates; which it trains on, and at which rates (Sanh et al. 2022).

A prompt-task is a data set under one prompt template, named `<data set>_<template>`; this is what its name tells. `p3`
reads the files.

>>> held_out_data_set("super_glue_cb_GPT_3_style"), is_trained_on("super_glue_boolq_yes_no_question")
('super_glue_cb', False)
"""

from __future__ import annotations

import re
from typing import NamedTuple


class DataSet(NamedTuple):
    """A held-out data set: its evaluation templates in T0's list, and the examples of its validation split."""

    templates: tuple[str, ...]
    examples: int


def _data_set(examples: int, templates: str) -> DataSet:
    return DataSet(tuple(templates.split()), examples)


_ENTAILMENT = """
    always_sometimes_never based_on_the_previous_passage can_we_infer claim_true_false_inconclusive
    consider_always_sometimes_never does_it_follow_that does_this_imply GPT_3_style
    guaranteed_possible_impossible guaranteed_true justified_in_saying MNLI_crowdsource must_be_true
    should_assume take_the_following_as_truth
"""

# T0's main evaluation, the data sets and the templates of each by the names that `canonical` gives them.
HELD_OUT = {
    "anli_dev_r1": _data_set(1000, _ENTAILMENT),
    "anli_dev_r2": _data_set(1000, _ENTAILMENT),
    "anli_dev_r3": _data_set(1200, _ENTAILMENT),
    "hellaswag": _data_set(
        10_042,
        """
        complete_first_then if_begins_how_continues Predict_ending_with_hint Randomized_prompts_template
        """,
    ),
    "story_cloze_2016": _data_set(
        1871,
        """
        Answer_Given_options Choose_Story_Ending Movie_What_Happens_Next Novel_Correct_Ending
        Story_Continuation_and_Options
        """,
    ),
    "super_glue_cb": _data_set(56, _ENTAILMENT),
    "super_glue_copa": _data_set(
        100,
        """
        As_a_result_C1_or_C2 best_option C1_or_C2_premise_so_because cause_effect choose exercise
        i_am_hesitating more_likely plausible_alternatives What_could_happen_next_C1_or_C2
        which_may_be_caused_by why_C1_or_C2
        """,
    ),
    "super_glue_rte": _data_set(
        277,
        """
        based_on_the_previous_passage can_we_infer does_it_follow_that does_this_imply GPT_3_style
        guaranteed_true justified_in_saying MNLI_crowdsource must_be_true should_assume
        """,
    ),
    "super_glue_wic": _data_set(
        638,
        """
        affirmation_true_or_false GPT_3_prompt GPT_3_prompt_with_label grammar_homework polysemous
        question_context question_context_meaning question_context_meaning_with_label same_sense similar_sense
        """,
    ),
    "super_glue_wsc_fixed": _data_set(
        104,
        """
        by_p_they_mean does_p_stand_for does_the_pronoun_refer_to GPT_3_Style I_think_they_mean in_other_words
        p_is_are_r replaced_with the_pronoun_refers_to Who_or_what_is_are
        """,
    ),
    "winogrande_winogrande_xl": _data_set(
        1267,
        """
        does_underscore_refer_to fill_in_the_blank Replace stand_for underscore_refer_to
        """,
    ),
}
# COPA's templates that ask for an effect, or for a cause, and the examples of its validation split that do.
_OF_A_PART = {
    "As_a_result_C1_or_C2": 48,
    "What_could_happen_next_C1_or_C2": 48,
    "which_may_be_caused_by": 52,
    "why_C1_or_C2": 52,
}
# Not T0's to train on: other configurations and splits of the held-out data sets, what T0+ and T0++ add, and the data
# sets of the evaluation of bias.
_NEVER_TRAINED = (
    *("anli_", "hellaswag_", "story_cloze_", "super_glue_", "winogrande_"),
    *("ai2_arc_", "openbookqa_", "piqa_", "race_", "squad_v2_", "trivia_qa_", "web_questions_"),
    *("crows_pairs_", "jigsaw_toxicity_pred_", "wino_bias_"),
)

# The data sets of T0's training mixture by the names that `canonical` gives them, with the training examples that T0's
# list counts; CommonsenseQA, which has its questions as CoS-E, is what some copies of P3 call them.
TRAINED = {
    "adversarial_qa_dbert": 10_000,
    "adversarial_qa_dbidaf": 10_000,
    "adversarial_qa_droberta": 10_000,
    "ag_news": 120_000,
    "amazon_polarity": 3_600_000,
    "app_reviews": 288_065,
    "cnn_dailymail_3_0_0": 287_113,
    "common_gen": 67_389,
    "commonsense_qa": 9_741,
    "cos_e_v1_11": 9_741,
    "cosmos_qa": 25_262,
    "dbpedia_14": 560_000,
    "dream": 6_116,
    "duorc_ParaphraseRC": 69_524,
    "duorc_SelfRC": 60_721,
    "gigaword": 3_803_957,
    "glue_mrpc": 3_668,
    "glue_qqp": 363_846,
    "imdb": 25_000,
    "kilt_tasks_hotpotqa": 88_869,
    "multi_news": 44_972,
    "paws_labeled_final": 49_401,
    "qasc": 8_134,
    "quail": 10_246,
    "quarel": 1_941,
    "quartz": 2_696,
    "quoref": 19_399,
    "ropes": 10_924,
    "rotten_tomatoes": 8_530,
    "samsum": 14_732,
    "sciq": 11_679,
    "social_i_qa": 33_410,
    "trec": 5_452,
    "wiki_bio": 582_659,
    "wiki_hop_original": 43_738,
    "wiki_qa": 20_360,
    "wiqa": 29_808,
    "xsum": 204_045,
    "yelp_review_full": 650_000,
}

CAP = 500_000  # examples of a data set that count for mixing
# The templates among which a data set of more examples shares the cap, as many as promptsource 0.1.0 has.
_TEMPLATES = {"amazon_polarity": 9, "dbpedia_14": 4, "gigaword": 9, "wiki_bio": 5, "yelp_review_full": 7}


def canonical(prompt_task: str) -> str:
    """A prompt-task's name in the form of `HELD_OUT`: P3 itself has dots, doubled underscores and ANLI's round last.

    >>> canonical("super_glue_wsc.fixed_p_is_are_r"), canonical("anli_GPT_3_style_r1")
    ('super_glue_wsc_fixed_p_is_are_r', 'anli_dev_r1_GPT_3_style')
    """
    name = re.sub("[^A-Za-z0-9]+", "_", prompt_task).strip("_")
    return re.sub(r"^anli_(?!dev_)(?P<template>\w+)_(?P<round>r[123])$", r"anli_dev_\g<round>_\g<template>", name)


def is_trained_on(prompt_task: str) -> bool:
    """Whether a prompt-task may stand in the training mixture: neither held out nor what T0 leaves to T0+ and T0++."""
    return not canonical(prompt_task).startswith(_NEVER_TRAINED)


def data_set(prompt_task: str) -> str:
    """The data set of a prompt-task of T0's lists, for training or held out; '' where it is in neither.

    >>> data_set("imdb_Reviewer_Enjoyment"), data_set("super_glue_rte_GPT_3_style"), data_set("my_own_prompt")
    ('imdb', 'super_glue_rte', '')
    """
    prompt_task = canonical(prompt_task)
    return next((name for name in (*TRAINED, *HELD_OUT) if prompt_task.startswith(f"{name}_")), "")


def mixing_rate(prompt_task: str) -> int | None:
    """T0's mixing rate of a prompt-task, in examples; None where its data set is not in `TRAINED`.

    It is the number of training examples of its data set, whatever its template makes of them; a data set of more than
    `CAP` shares the cap among its templates. A smaller one does not share: the six prompts of QQP together weigh four
    times as much as the nine of Gigaword, in T0's mixture as here.

    >>> mixing_rate("imdb_Reviewer_Enjoyment"), mixing_rate("gigaword_TLDR"), mixing_rate("my_own_prompt")
    (25000, 55555, None)
    """
    name = data_set(prompt_task)
    if name not in TRAINED:
        return None
    return TRAINED[name] if TRAINED[name] <= CAP else CAP // _TEMPLATES[name]


def held_out_data_set(prompt_task: str) -> str | None:
    """The held-out data set of a prompt-task under one of T0's evaluation templates; None for all others.

    >>> held_out_data_set("super_glue_cb_GPT_3_style"), held_out_data_set("super_glue_cb_GPT_3_style_score_eval")
    ('super_glue_cb', None)
    """
    return next((name for name in HELD_OUT if template(prompt_task, name)), None)


def official_examples(name: str, template: str) -> int:
    """How many validation examples a held-out data set has under one of its templates.

    >>> official_examples("super_glue_copa", "choose"), official_examples("super_glue_copa", "why_C1_or_C2")
    (100, 52)
    """
    return _OF_A_PART.get(template, HELD_OUT[name].examples)


def template(prompt_task: str, name: str) -> str | None:
    """Which of a held-out data set's templates it is; between the two names may stand what part of the data set."""
    prompt_task = canonical(prompt_task)
    if not prompt_task.startswith(f"{name}_"):
        return None
    # The longest: Winogrande has both "underscore refer to" and "does underscore refer to".
    fitting = [one for one in HELD_OUT[name].templates if prompt_task.endswith(f"_{one}")]
    return max(fitting, key=len, default=None)
