"""Relations of any field; tried after all others, for their shapes are like many sentences."""

from hyperflax.tuner.questions.relation import Relation

RELATIONS = (
    Relation(
        "number_of",
        ("{subject} has {value:number} {thing}",),
        (
            "How many {thing} does {subject} have?",
            "How many {thing} has {subject} got?",
            "What is the number of {thing} of {subject}?",
            "{subject} has how many {thing}?",
            "Count the {thing} of {subject}.",
            "How many {thing} belong to {subject}?",
            "How many {thing} are there in {subject}?",
            "Give the number of {thing} in {subject}.",
            "In {subject}, how many {thing} are there?",
            "{subject}: how many {thing}?",
            "What number of {thing} has {subject}?",
            "How many {thing} would you count in {subject}?",
        ),
    ),
    Relation(
        "attribute",
        ("The {thing} of {subject} is {value:quantity}", "The {thing} of {subject} is {value}"),
        (
            "What is the {thing} of {subject}?",
            "Which {thing} does {subject} have?",
            "Name the {thing} of {subject}.",
            "{subject} has which {thing}?",
            "Tell me the {thing} of {subject}.",
            "What {thing} has {subject} got?",
            "The {thing} of {subject} is what?",
            "For {subject}, what is the {thing}?",
            "Do you know the {thing} of {subject}?",
            "What would you give as the {thing} of {subject}?",
            "{subject}: what {thing}?",
            "As to {subject}, which {thing} is right?",
        ),
    ),
    Relation(
        "kind",
        ("{subject} is a {value}", "{subject} is an {value}"),
        (
            "What is {subject}?",
            "What kind of thing is {subject}?",
            "What sort of thing is {subject}?",
            "To which kind does {subject} belong?",
            "{subject} is what?",
            "{subject} is an example of what?",
            "Name the kind that {subject} is of.",
            "Under what would you sort {subject}?",
            "What would you call {subject}, in general?",
            "{subject} counts as what?",
            "Which class of things is {subject} in?",
            "{subject} falls under which heading?",
        ),
    ),
)
