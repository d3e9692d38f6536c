"""Evaluation: metrics, intervals over tasks, controls, and one report for all of them.

The way of an evaluation: `evaluate_conditions` runs each condition over the tasks and scores it, `ScoreTable.report`
adds intervals and paired differences, `write_report` and `write_plots` put it where a reader finds it. All of these
take a condition as a callable from tasks to predictions, and know no model. What does is beside them:

- `held_out`: the tasks of a source, as text and as tokens; `conditions`: a hypermodel's answers to them (`ranking` of
  choices, `neighbours` among training tasks, `references` that it is compared with).
- `suite`: a benchmark's own rules; `coverage`: what an evaluation lacks of it; `contamination`: what of it
  was trained on.
- `estimate`: whether to use an adapter, from its own examples; `worth`: whether fine-tuning it gained anything.
"""

from hyperflax.evaluation.controls import derangement, shuffled_support
from hyperflax.evaluation.intervals import Interval, bootstrap_difference, bootstrap_mean, bootstrap_nested
from hyperflax.evaluation.metrics import METRICS, Metric, best_options, get_metric
from hyperflax.evaluation.plots import write_plots
from hyperflax.evaluation.provenance import run_info
from hyperflax.evaluation.report import build_report, read_report, write_report
from hyperflax.evaluation.runner import EvaluationTask, ScoreTable, evaluate_conditions
from hyperflax.evaluation.schema import CONDITIONS, DIFFERENCES, validate_report

__all__ = [
    "CONDITIONS",
    "DIFFERENCES",
    "METRICS",
    "EvaluationTask",
    "Interval",
    "Metric",
    "ScoreTable",
    "best_options",
    "bootstrap_difference",
    "bootstrap_mean",
    "bootstrap_nested",
    "build_report",
    "derangement",
    "evaluate_conditions",
    "get_metric",
    "read_report",
    "run_info",
    "shuffled_support",
    "validate_report",
    "write_plots",
    "write_report",
]
