"""How far a task, and a pipeline within it, are off a prediction: three variances, and what observations say.

    y_igj = f(x_ig) + b_i + c_ig + e_igj,     b ~ N(0, task),  c ~ N(0, pipeline),  e ~ N(0, step)

for observation j of pipeline g in task i: a slower machine moves all of a task (b), a pipeline that f misjudges keeps
its error at every step (c), and no step takes quite as long as the last (e). With residuals r = y - f of one task, n_g
of them for pipeline g, their mean r_g and w_g = 1 / (pipeline + step / n_g):

    b | r ~ N(v sum_g w_g r_g, v),                          v = 1 / (1 / task + sum_g w_g)
    c_g | b, r ~ N(s_g (r_g - b), pipeline (1 - s_g)),      s_g = pipeline w_g,  s_g = 0 if g has not been run

so a step of pipeline g yet to come has residual mean b + s_g (r_g - b), with b at its mean, and variance
v (1 - s_g)^2 + pipeline (1 - s_g) + step. Everything is a Gaussian's closed form; no sampling, no optimisation.

The variances come from residuals on tasks that f was not fitted on, by moments of unweighted means (the nested random
effects of Searle, Casella & McCulloch 1992, Variance Components, ch. 5), negative estimates raised to 0. Each is then
averaged with its prior value, which counts as one degree of freedom: a table of one task still gives a prior.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hyperflax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Variances:
    """Of offsets, in squared units of y; the defaults are the priors, for y in log seconds.

    Attributes:
      task: a machine or data set twice as slow or fast as predicted is one standard deviation.
      pipeline: a fifth slower or faster.
      step: a twentieth.
    """

    task: float = 0.48  # log(2) ** 2
    pipeline: float = 0.04
    step: float = 0.0025

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (np.isfinite(value) and value > 0):
                raise DataError(f"variances: {field.name}: expected a positive number, got {value}")


def estimate(residuals: np.ndarray, tasks: np.ndarray, pipelines: np.ndarray, prior: Variances) -> Variances:
    """Returns the three variances, each averaged with its prior.

    Args:
      residuals: [n] y - f, where f was fitted on other tasks.
      tasks: [n] int, which task.
      pipelines: [n] int, which pipeline; equal numbers in different tasks are different offsets.
      prior: counts as one degree of freedom in each average.
    """
    residuals = np.asarray(residuals, np.float64)
    pairs, pair = np.unique(np.stack([tasks, pipelines], axis=1), axis=0, return_inverse=True)
    means, counts, squares = group_means(residuals, pair.reshape(-1), len(pairs))
    free = len(residuals) - len(pairs)
    step = max(squares / free, 0.0) if free else prior.step

    tasks_present, task = np.unique(pairs[:, 0], return_inverse=True)
    task_means, sizes, spread = group_means(means, task.reshape(-1), len(tasks_present))
    noise = np.bincount(task.reshape(-1), step / counts, len(sizes))  # sum over a task's pipelines of step / n_g
    between = len(pairs) - len(sizes)
    pipeline = max((spread - np.sum((1 - 1 / sizes) * noise)) / between, 0.0) if between else prior.pipeline
    whole = max(np.mean(task_means**2 - pipeline / sizes - noise / sizes**2), 0.0) if len(sizes) else prior.task

    shrunk = [
        float((before + count * found) / (1 + count))
        for before, found, count in (
            (prior.task, whole, len(sizes)),
            (prior.pipeline, pipeline, between),
            (prior.step, step, free),
        )
    ]
    return Variances(*shrunk)


def posterior(
    variances: Variances, residuals: np.ndarray, pipelines: np.ndarray, asked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (mean [m], variance [m]) of the residual of a further step, given one task's residuals.

    Args:
      variances: see `estimate`.
      residuals: [k] y - f of what was observed in this task; k may be 0.
      pipelines: [k] int from 0, which pipeline.
      asked: [m] int, the pipelines asked about, in the same numbers; those not among `pipelines` have not been run.
    """
    total = int(max(pipelines.max(initial=-1), asked.max(initial=-1))) + 1
    means, counts, _ = group_means(np.asarray(residuals, np.float64), pipelines, total)
    seen = counts > 0
    weights = np.where(seen, 1.0 / (variances.pipeline + variances.step / np.maximum(counts, 1)), 0.0)
    shared_variance = 1.0 / (1.0 / variances.task + np.sum(weights))
    shared = shared_variance * np.sum(weights * means)
    own = (variances.pipeline * weights)[asked]
    mean = shared + own * (means[asked] - shared)
    variance = shared_variance * (1 - own) ** 2 + variances.pipeline * (1 - own) + variances.step
    return mean, variance


def group_means(values: np.ndarray, group: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns means [total] (0 of an empty group), counts [total], and the sum of squares about the means."""
    counts = np.bincount(group, minlength=total)
    means = np.bincount(group, values, total) / np.maximum(counts, 1)
    return means, counts, float(np.sum((values - means[group]) ** 2))
