"""How far a pretrained base is from counting words: its validation loss beside a unigram's and a bigram's.

    python benchmarks/ngrams.py --text DIR --vocabulary spiece.model --base runs/ni_base/model

All three predict the same tokens, those of `runs/natural_instructions_base.gin`'s validation: the targets of span
corruption over held-out documents, sentinels and ends of sequence included. The n-gram models count the targets of
`--windows` corrupted windows of the training documents; the bigram is interpolated Kneser-Ney (Ney, Essen and Kneser
1994), its discount estimated from the counts. Losses are nats per target token.
"""

from __future__ import annotations

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hyperflax.checkpoints.forms import load_base
from hyperflax.data.corruption import SpanCorruption
from hyperflax.data.text import PackedBatches
from hyperflax.data.vocabularies import EOS_ID, SentencePiece
from hyperflax.models.t5 import T5
from hyperflax.objectives.language_model import T5Objective
from hyperflax.training.evaluate import loss_evaluator
from hyperflax.types import T5Config
from hyperflax_tasks.corpus import text_source

# The shape of `models/t5_mini.gin`.
MINI = T5Config(
    vocab_size=32128,
    emb_dim=256,
    num_heads=4,
    head_dim=64,
    mlp_dim=1024,
    num_encoder_layers=4,
    num_decoder_layers=4,
    logits_via_embedding=True,
)
START = 0  # padding's id, which is what a decoder starts from


class Bigram:
    """Counts of (previous, next) tokens in target sequences, and the two models that follow from them."""

    def __init__(self, sequences: list[np.ndarray], size: int):
        previous = np.concatenate([np.concatenate([[START], tokens[:-1]]) for tokens in sequences]).astype(np.int64)
        following = np.concatenate(sequences).astype(np.int64)
        self._size = size
        # One more of every token: none is impossible.
        counts = np.bincount(following, minlength=size) + 1.0
        self.unigram = counts / counts.sum()
        self._pairs, self._counts = np.unique(previous * size + following, return_counts=True)
        ones, twos = (self._counts == 1).sum(), (self._counts == 2).sum()
        self.discount = ones / (ones + 2 * twos)
        first = self._pairs // size
        self._total = np.bincount(first, self._counts, minlength=size)
        self._kinds = np.bincount(first, minlength=size)
        # Kneser-Ney backs off to how many different tokens a token follows.
        continuations = np.bincount(self._pairs % size, minlength=size) + 1.0
        self._backoff = continuations / continuations.sum()

    def bigram(self, previous: np.ndarray, following: np.ndarray) -> np.ndarray:
        """Returns P(following | previous), elementwise."""
        code = previous.astype(np.int64) * self._size + following
        at = np.minimum(np.searchsorted(self._pairs, code), len(self._pairs) - 1)
        count = np.where(self._pairs[at] == code, self._counts[at], 0)
        total = np.maximum(self._total[previous], 1)
        seen = np.maximum(count - self.discount, 0) / total
        left = np.where(self._total[previous] > 0, self.discount * self._kinds[previous] / total, 1.0)
        return seen + left * self._backoff[following]


def main() -> None:
    """Prints the losses as one line of json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="folder of jsonl shards with a 'text' each")
    parser.add_argument("--vocabulary", required=True, help="SentencePiece model")
    parser.add_argument("--base", help="exported T5 directory; without it only the n-grams")
    parser.add_argument("--windows", type=int, default=500_000, help="training windows to count (default 500000)")
    parser.add_argument("--batches", type=int, default=16, help="validation batches (default 16, as the run file's)")
    args = parser.parse_args()

    vocabulary = SentencePiece(args.vocabulary)
    train, validation = (
        SpanCorruption(text_source(args.text, split, vocabulary), length=250) for split in ("train", "validation")
    )
    batches = PackedBatches(validation, batch_size=16, inputs_length=256, targets_length=64, seed=1)

    rng = np.random.default_rng(0)
    sequences = []
    for _ in tqdm(range(args.windows), desc="windows", unit="window"):
        sequences += [np.append(targets, EOS_ID) for _, targets in train(rng)]
    model = Bigram(sequences, vocabulary.vocab_size)
    anything = np.arange(vocabulary.vocab_size)
    total = model.bigram(np.full_like(anything, sequences[0][0]), anything).sum()
    if abs(total - 1) > 1e-9:
        raise AssertionError(f"the bigram's probabilities sum to {total}")

    previous, following = [], []
    for index in range(args.batches):
        batch = batches.batch(index)
        real = batch["decoder_loss_weights"] > 0
        previous.append(batch["decoder_input_tokens"][real])
        following.append(batch["decoder_target_tokens"][real])
    previous, following = np.concatenate(previous), np.concatenate(following)
    losses = {
        "tokens": len(following),
        "unigram": float(-np.log(model.unigram[following]).mean()),
        "bigram": float(-np.log(model.bigram(previous, following)).mean()),
    }
    if args.base:
        params = jax.tree.map(jnp.asarray, load_base(args.base, MINI))
        losses["t5"] = loss_evaluator(T5Objective(T5(MINI)), batches, args.batches)(params, None, 0)["loss"]
    print(json.dumps(losses))


if __name__ == "__main__":
    main()
