"""hyperflax inside other software. Nothing else in hyperflax imports these modules; each needs what the table says.

| module | inside | needs |
|---|---|---|
| `t5x` | `python -m t5x.train`: a model that it trains | a copy of T5X |
| `t5x_export` | what T5X trained, as a model directory | nothing |
| `t5x_episodes` | seqio: a feature converter, ordinary examples to episodes | seqio, TensorFlow |
"""
