"""C4 as TensorFlow Datasets has it, as the seqio Task `c4`: plain text for hyperpretraining and for a base.

```
export TFDS_DATA_DIR=gs://my-bucket/tensorflow_datasets HYPERFLAX_VOCABULARY=~/spiece.model
hyperflax cache --module hyperflax_tasks.c4 --mixture c4 --split train --out caches/c4/train
hyperflax cache --module hyperflax_tasks.c4 --mixture c4 --split validation --out caches/c4/validation
```

One task, `c4`, whose examples have an empty input and a document as target; splits `train` and `validation`. Run files
with text name the folder of both caches, `MIXTURE_OR_TASK_NAME=caches/c4`, and need no TensorFlow then, or the Task by
`MIXTURE_OR_TASK_NAME` and `MIXTURE_OR_TASK_MODULE`, which is read into memory: 1% of the training split takes some
15 GB while it is.

`HYPERFLAX_C4` is the data set, by default `c4/en:3.1.0`; any of TFDS with a feature `text` will do.
`HYPERFLAX_C4_TRAIN` is the part of its training split, as TFDS writes it, by default `train[:1%]`: 3.6 million
documents, which are more text than 100,000 steps of 32 windows of 512 tokens read. Documents as files, without TFDS:
`hyperflax_tasks.corpus`.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from hyperflax.data.examples import tokenise
from hyperflax.data.seqio_source import import_seqio
from hyperflax.data.vocabularies import Vocabulary
from hyperflax_tasks.natural_instructions import find_vocabulary
from hyperflax_tasks.text_task import seqio_vocabulary

NAME = "c4"


def register(tfds_name: str | None = None, train: str | None = None, vocabulary: Vocabulary | None = None) -> None:
    """Adds the seqio Task, in the place of one of that name.

    Args:
      tfds_name: data set of TFDS; by default `HYPERFLAX_C4`.
      train: part of its training split; by default `HYPERFLAX_C4_TRAIN`.
      vocabulary: by default the one that `HYPERFLAX_VOCABULARY` names.

    Raises:
      ConfigError: no vocabulary.
      MissingExtraError: seqio is not installed.
    """
    seqio = import_seqio()
    tfds_name = tfds_name or os.environ.get("HYPERFLAX_C4", "c4/en:3.1.0")
    train = train or os.environ.get("HYPERFLAX_C4_TRAIN", "train[:1%]")
    ours = find_vocabulary(vocabulary)
    feature = seqio.Feature(vocabulary=seqio_vocabulary(ours), add_eos=True)
    if NAME in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(NAME)
    seqio.TaskRegistry.add(
        NAME,
        source=seqio.TfdsDataSource(tfds_name, splits={"train": train, "validation": "validation"}),
        preprocessors=[
            functools.partial(_documents, vocabulary=ours),
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={"inputs": feature, "targets": feature},
    )


def _documents(dataset: Any, vocabulary: Vocabulary) -> Any:
    """`{"text", ...}` to empty inputs and the text's tokens, those that hyperflax makes of it (see `add_text_task`)."""
    import tensorflow as tf

    def tokens(text: bytes) -> np.ndarray:
        return tokenise(text.decode("utf-8"), vocabulary)

    def document(row: dict[str, Any]) -> dict[str, Any]:
        made = tf.numpy_function(tokens, [row["text"]], tf.int32, stateful=False)
        nothing = tf.zeros([0], tf.int32)
        return {"inputs": nothing, "targets": tf.ensure_shape(made, [None]), "targets_pretokenized": row["text"]}

    return dataset.map(document, num_parallel_calls=tf.data.AUTOTUNE)
