"""Question-answer data from texts: facts, and twelve questions about each in different words.

After Strangmann et al., arXiv 2411.01195, the data of the evaluation: an LLM extracts atomic facts from papers; of 12
question-answer pairs per fact 10 are for training, 1 for validation and 1 for the test. So the test asks for known
facts in unseen words.

- `facts.py`: `Text`, `Fact`, `Pair`, the protocol `Extractor`, and when two wordings are one;
- `rules.py` and `relations/`: the embedded extractor, sentences of a fixed grammar, no model and no network;
- `endpoint.py`, `replies.py`, `post.py`: an LLM behind any OpenAI-compatible endpoint as the extractor;
- `generate.py`: the data set on the disk.
"""

from hyperflax.tuner.questions.endpoint import Endpoint
from hyperflax.tuner.questions.facts import Extraction, Extractor, Fact, Pair, Text, read_text
from hyperflax.tuner.questions.generate import generate
from hyperflax.tuner.questions.rules import Rules

__all__ = ["Endpoint", "Extraction", "Extractor", "Fact", "Pair", "Rules", "Text", "generate", "read_text"]
