"""Names of public data sets, the same for all collections that have them: P3, MetaICL, Super-NaturalInstructions.

A collection calls a data set as it likes: `glue/mrpc`, `glue-mrpc`, `mrpc`. What is trained on under one name must be
found under the others (`hyperflax.evaluation.contamination`), so here every name is brought to one.

>>> shared_name("super_glue/wsc.fixed"), shared_name("superglue-wsc"), shared_name("CosmosQA")
('wsc', 'wsc', 'cosmos_qa')
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Benchmarks whose parts are known by themselves; `adversarial_qa_dbert` and the like are configurations.
_BENCHMARK = re.compile("^(super_?glue|glue|kilt_tasks|kilt|unifiedqa)_(?=[a-z])")
_CONFIGURATION = re.compile(
    "^(adversarial_qa|anli|cnn_dailymail|cos_e|duorc|ethos|hatexplain|natural_questions|openbookqa|paws|qasc|quartz"
    "|race|story_cloze|trec|tweet_eval|wiki_hop|winogrande)_.*"
)
_ALIASES = {
    "abductive_nli": "art",
    "arc": "ai2_arc",
    "commongen": "common_gen",
    "commonsenseqa": "commonsense_qa",
    "cos_e": "commonsense_qa",  # its questions
    "cosmosqa": "cosmos_qa",
    "enhanced_wsc": "wsc",  # its sentences in other words
    "hateeval": "tweet_eval",  # its part `hate`
    "hotpot_qa": "hotpotqa",
    "multinli": "mnli",
    "mwsc": "wsc",  # its sentences as questions
    "nq": "natural_questions",
    "numersense": "numer_sense",
    "physical_iqa": "piqa",
    "roc_stories": "story_cloze",  # Super-NaturalInstructions' tasks of it ask for the right end
    "rocstories": "story_cloze",
    "sms_spam_collection_v_1": "sms_spam",
    "social_iqa": "social_i_qa",
    "squad1_1": "squad",
    "squad2": "squad",  # all of the first one's questions, and more
    "squad_no_context": "squad",
    "squad_v2": "squad",
    "squad_with_context": "squad",
    "sst2": "sst_2",
    "storycloze": "story_cloze",
    "tweetqa": "tweet_qa",
    "wino_grande": "winogrande",
    "winograd_wsc": "wsc",
    "wsc_fixed": "wsc",
    "wscfixed": "wsc",
    "yelp_polarity": "yelp_review_full",  # the same reviews
}


def shared_name(name: str) -> str:
    """The one name of a data set; '' of an empty one."""
    name = re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")
    name = _CONFIGURATION.sub(r"\1", _BENCHMARK.sub("", name))
    return _ALIASES.get(name, name)


def data_sets(collection: str, names: Iterable[str]) -> tuple[str, ...]:
    """Data sets of a collection's task, as `TaskInfo.data_sets` has them; what has no name is left out.

    >>> data_sets("p3", ["super_glue_rte"])
    ('p3/rte',)
    """
    return tuple(dict.fromkeys(f"{collection}/{found}" for name in names if (found := shared_name(name))))
