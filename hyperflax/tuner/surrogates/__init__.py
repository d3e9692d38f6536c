"""Surrogates: what a pipeline would score, and what a step of it would cost, learnt from earlier tasks.

- `queries`, `protocol`: what is asked, what has been observed, what a surrogate is.
- `deep_kernel`: scores, by a Gaussian process on learnt features; `exact_gp` is the process itself.
- `cost`: log seconds, by an MLP; `offsets` is how it learns from observed seconds.
- `features`, `minimise`: scaling, training; `saving`: directories.
"""

from hyperflax.tuner.surrogates.cost import MLPCost, in_seconds
from hyperflax.tuner.surrogates.deep_kernel import DeepKernelGP
from hyperflax.tuner.surrogates.protocol import CostSurrogate, Fitted, Observations, PerformanceSurrogate, Queries
from hyperflax.tuner.surrogates.saving import load, save

__all__ = [
    "CostSurrogate",
    "DeepKernelGP",
    "Fitted",
    "MLPCost",
    "Observations",
    "PerformanceSurrogate",
    "Queries",
    "in_seconds",
    "load",
    "save",
]
