"""What a training job may train: models as `hyperflax.train.train` takes them.

protocol.py        what every one of them can do: its objective, where it starts, what it leaves
plain_t5.py        `PlainT5`, a T5 that learns from (inputs, targets) pairs
hypernetwork.py    `HypernetworkOf`, a hypernetwork that learns to write adapters for a frozen T5
adapters.py        `SharedAdapter`, one adapter for all tasks; `TaskAdapters`, one for each
"""

from hyperflax.trainables.adapters import SharedAdapter, TaskAdapters
from hyperflax.trainables.hypernetwork import HypernetworkOf
from hyperflax.trainables.plain_t5 import PlainT5
from hyperflax.trainables.protocol import Trainable, Trained

__all__ = ["HypernetworkOf", "PlainT5", "SharedAdapter", "TaskAdapters", "Trainable", "Trained"]
