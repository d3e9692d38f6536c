"""The benchmark of claims: what three papers say of hypernetworks, tried on one machine, with a verdict for each claim.

    python -m benchmarks.claims --out runs/claims

`docs/claims.md` says how to run it and how to read it. The files, from the declared to the done:

    experiments   what an experiment is, and the hash of its configuration
    settings      two families of tasks at two scales: sizes, lengths, steps
    table         the claims: which experiments are compared by which statistic, the papers' own figures beside it
    families      where tasks and texts come from
    training      an experiment's models, trained through `hyperflax.train` and continued where they were stopped
    evaluation    scores of a trained system on tasks that nothing was trained on
    tuning        further training of adapters from generated, shared and random starts
    flops         floating-point operations of a training step, in closed form
    results       one json for every experiment and seed
    verdicts      intervals over tasks and seeds, and the rule that makes verdicts of them
    report        the table and its pictures
"""
