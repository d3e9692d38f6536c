"""Fine-tunes the micro model, for the test that kills it. Run as: python killed_run.py FOLDER EXAMPLES [KILL]

KILL is `batch:N`, SIGKILL when the batch of step N is asked for, or `keep:N`, SIGKILL when the best adapter was kept
for the N-th time and no checkpoint of that step has been written.
"""

from __future__ import annotations

import os
import signal
import sys

import hyperflax.finetune as job
from hyperflax.training.finetuning import FineTuning
from tests.finetuning.micro_model import LORA, micro_model

SETTINGS = FineTuning(steps=20, batch_size=4, evaluations=4, learning_rate=0.02)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, examples: str, kill: str = "batch:-1") -> None:
    how, number = kill.split(":")
    batch, save_tree, kept = job.PairBatches.batch, job.save_tree, []

    def killing_batch(self, step):
        if how == "batch" and step == int(number) and self.seed is not None:
            die()
        return batch(self, step)

    def killing_save(path, tree):
        save_tree(path, tree)
        kept.append(path)
        if how == "keep" and len(kept) == int(number):
            die()

    job.PairBatches.batch, job.save_tree = killing_batch, killing_save
    job.finetune(model=micro_model(), examples=examples, out=folder, kinds=(LORA,), settings=SETTINGS, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
