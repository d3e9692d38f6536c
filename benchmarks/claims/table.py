"""The table of claims for one setting: what is run, what is compared, what the papers found.

>>> [claim.number for claim in claims(SETTINGS["strings_demo", "cpu"])]
[1, 2, 3, 4, 5, 6]

Published figures stand in the papers' own units, points on other benchmarks with T5-Large: they say in which direction
and how far, not which number to expect here. Marks as usual: read in the paper [P], in a paper or review that quotes it
[2], remembered [M].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from benchmarks.claims.comparisons import Claim, Comparison, Curve, Side
from benchmarks.claims.experiments import (
    Base,
    Evaluation,
    Experiment,
    MuonExperiment,
    ReconstructionExperiment,
    Tuning,
)
from benchmarks.claims.settings import Setting
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.hypernets.hart import HARTConfig
from hyperflax.hypernets.hyper_t5 import HyperT5Config

POINT = 0.01  # one point of exact match or ROUGE-L: the smallest difference of scores that would matter
EQUAL = 0.02  # two systems whose operations per step differ by less than this share get equally many steps


def claims(setting: Setting) -> tuple[Claim, ...]:
    """Returns the six claims."""
    return tuple(
        make(Systems(setting))
        for make in (_against_baselines, _hyperpretraining, _hart, _consistency, _ablations, _initialisation)
    )


def experiments(chosen: Iterable[Claim]) -> dict[str, Experiment | Tuning]:
    """Returns everything that is run for some claims, by name, each once; what is tuned stands before its tuning."""
    found: dict[str, Experiment | Tuning] = {}
    for claim in chosen:
        for one in claim.experiments:
            if found.setdefault(one.name, one) != one:
                raise ValueError(
                    f"experiment '{one.name}': expected one of that name, claim {claim.number} has another"
                )
    return found


class Systems:
    """The reference systems of a setting, from which every other experiment differs in one thing."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.base = setting.bases[0]
        plain = self.hypernetwork("hyper_t5", self.base, setting.lora)
        # The two that meet the baselines and controls; the first is the one whose score is followed over the shots.
        self.hyper_t5 = plain.replace(evaluation=dataclasses.replace(setting.evaluation, shots=setting.shots))
        self.hart = self.hypernetwork("hart", self.base, setting.lora, hart=True)
        prefix = self.hypernetwork("hyper_t5_prefix", self.base, setting.prefix)
        self.hyper_t5_prefix = prefix.replace(evaluation=setting.evaluation)
        self.shared = self._shared("shared", setting.lora)
        self.shared_prefix = self._shared("shared_prefix", setting.prefix)
        # The references of sizes and sites: the same on another base, where the family has one.
        self.sized, self.sized_prefix = self.hyper_t5, self.hyper_t5_prefix
        if another := setting.another:
            controlled = _scoring(setting.evaluation, "bare", "generated", "shuffled_support")
            self.sized = self.hypernetwork("hyper_t5_another", another, setting.lora).replace(evaluation=controlled)
            self.sized_prefix = self.hypernetwork("hyper_t5_prefix_another", another, setting.prefix)

    def hypernetwork(self, name: str, base: Base, adapter: KindConfig, *, hart: bool = False) -> Experiment:
        """The reference recipe with a HyperT5 or a HART of the base's shape, scored by what it generates alone."""
        setting = self.setting
        return Experiment(
            name=name,
            base=base,
            episodes=setting.episodes,
            evaluation=_scoring(setting.evaluation, "generated"),
            steps=setting.steps,
            learning_rate=setting.learning_rate,
            seeds=setting.seeds,
            adapter=adapter,
            hypernetwork=(HARTConfig if hart else HyperT5Config)(t5=base.shape, heads=setting.heads),
        )

    def _shared(self, name: str, adapter: KindConfig) -> Experiment:
        evaluation = _scoring(self.setting.evaluation, "shared")
        return self.hyper_t5.replace(name=name, adapter=adapter, hypernetwork=None, evaluation=evaluation)

    def mtf(self) -> Experiment:
        """The T5 itself fine-tuned, support and definition before the input."""
        evaluation = _scoring(self.setting.evaluation, "mtf")
        rate = self.setting.mtf_learning_rate
        return self.shared.replace(name="mtf", adapter=None, learning_rate=rate, evaluation=evaluation)

    def hyperpretrained(self, experiment: Experiment, steps: int) -> Experiment:
        stage = dataclasses.replace(self.setting.window, steps=steps)
        return variant(experiment, f"hyperpretrained_{steps}", hyperpretraining=stage)


def variant(experiment: Experiment, name: str, **changes: object) -> Experiment:
    """Returns the experiment with one thing changed; baselines and the curve over shots are the reference's alone."""
    evaluation = _scoring(experiment.evaluation, "generated")
    return experiment.replace(name=f"{experiment.name}_{name}", evaluation=evaluation, **changes)


def _scoring(evaluation: Evaluation, *conditions: str) -> Evaluation:
    return dataclasses.replace(evaluation, conditions=conditions, shots=())


def _against_baselines(systems: Systems) -> Claim:
    mtf = systems.mtf()
    found = []
    for ours, shared in ((systems.hyper_t5, systems.shared), (systems.hyper_t5_prefix, systems.shared_prefix)):
        kind = ours.spec.kinds[0].kind
        published = {"lora": "P3 53.3 : 50.6 [2]", "prefix": "P3 54.6 : 50.6 (one shared LoRA) [2]"}[kind]
        generated = Side(ours.name)
        found += [
            *_beats_baselines(ours, shared, published=published),
            Comparison(
                f"generated {kind} against examples in context", generated, Side(ours.name, "in_context"), POINT,
                decides=False,
            ),
            Comparison(
                f"generated {kind} against multi-task fine-tuning", generated, Side(mtf.name, "mtf"), POINT,
                decides=False, published=f"P3 {published[3:7]} : 55.4; S-NI 42.0 : 47.6 (LoRA) [2]",
            ),
            Comparison(
                f"refining generated {kind} on its support helps", Side(ours.name, "refined"), generated, POINT,
                decides=False,
            ),
        ]  # fmt: skip
    again: list[Experiment] = []
    if systems.sized is not systems.hyper_t5:
        ours = systems.sized
        shared = systems.shared.replace(name="shared_another", base=ours.base)
        again += [ours, shared]
        found += _beats_baselines(ours, shared, where="on another base, ", decides=False)
    return Claim(
        1,
        "Generated adapters beat the bare model, one shared adapter and the shuffled control on unseen tasks.",
        (systems.hyper_t5, systems.hyper_t5_prefix, systems.shared, systems.shared_prefix, mtf, *again),
        tuple(found),
        published="HyperT5 beats one shared LoRA on P3 and stays below multi-task fine-tuning of the T5 [2].",
    )


def _beats_baselines(
    ours: Experiment, shared: Experiment, *, where: str = "", published: str = "", decides: bool = True
) -> list[Comparison]:
    """The bare model, one shared adapter and the shuffled control; `published` is of the second."""
    kind = ours.spec.kinds[0].kind
    others = (
        ("the bare model", Side(ours.name, "bare"), ""),
        (f"one shared {kind}", Side(shared.name, "shared"), published),
        ("the adapter of another task's support", Side(ours.name, "shuffled_support"), ""),
    )
    return [
        Comparison(
            f"{where}generated {kind} beats {what}", Side(ours.name), other, POINT, decides=decides, published=found
        )
        for what, other, found in others
    ]


def _hyperpretraining(systems: Systems) -> Claim:
    plain = systems.hyper_t5
    steps = systems.setting.hyperpretraining
    short, right, long = (systems.hyperpretrained(plain, number) for number in steps)
    points = [(0, plain), *zip(steps, (short, right, long), strict=True)]
    return Claim(
        2,
        "Hyperpretraining helps, and too much of it hurts.",
        (plain, short, right, long),
        (
            Comparison("hyperpretraining helps", Side(right.name), Side(plain.name), POINT),
            Comparison("too much hyperpretraining hurts", Side(long.name), Side(right.name), POINT, better="lower"),
            Comparison("a little already helps", Side(short.name), Side(plain.name), POINT, decides=False),
        ),
        (
            Curve(
                "score over the length of hyperpretraining", "steps of hyperpretraining", "score",
                {"HyperT5": tuple((steps, Side(one.name)) for steps, one in points)},
            ),
        ),
        published="About 100,000 steps of 256 windows; needed, and too much hurts [M]. No figure is known.",
    )  # fmt: skip


def _hart(systems: Systems) -> Claim:
    setting = systems.setting
    all_of_them, found, lines = [], [], {"HyperT5": [], "HART": []}
    for base in setting.bases:
        depth = base.shape.num_encoder_layers
        if base == systems.base:
            hyper_t5, hart = systems.hyper_t5, systems.hart
        else:
            hyper_t5 = systems.hypernetwork(f"hyper_t5_{depth}", base, setting.lora)
            hart = systems.hypernetwork(f"hart_{depth}", base, setting.lora, hart=True)
        matched = at_equal_flops(hart, hyper_t5)
        all_of_them += dict.fromkeys((hyper_t5, hart, matched))
        where = f"with {depth} + {depth} layers"
        ours, theirs = Side(hart.name), Side(hyper_t5.name)
        found += [
            Comparison(
                f"HART beats HyperT5 at equal steps {where}", ours, theirs, POINT,
                published="P3 55.0 : 53.3 (LoRA), 54.6 (prefix); S-NI 46.8 : 42.0; autoregression alone > +1 [2]",
            ),
            Comparison(f"HART beats HyperT5 at equal FLOPs {where}", Side(matched.name), theirs, POINT),
            Comparison(
                f"HART learns from fewer examples {where} (mean validation loss)",
                Side(hart.name, "mean_validation_loss"), Side(hyper_t5.name, "mean_validation_loss"), 0.01,
                statistic="figure", better="lower",
            ),
            Comparison(
                f"HART costs fewer seconds a step {where}",
                Side(hart.name, "seconds_per_step"), Side(hyper_t5.name, "seconds_per_step"), 0.01,
                statistic="figure", better="lower", decides=False,
            ),
        ]  # fmt: skip
        lines["HyperT5"].append((depth, theirs))
        lines["HART"].append((depth, ours))
    network = HARTConfig(t5=systems.base.shape, heads=setting.heads, feedback="direct")
    direct = variant(systems.hart, "direct", hypernetwork=network)
    all_of_them.append(direct)
    found += [
        Comparison(
            "slots of every layer's own and a learned feedback beat the recurrence as its reviewers quote it",
            Side(systems.hart.name), Side(direct.name), POINT, decides=False,
        ),
        Comparison(
            "that recurrence against HyperT5", Side(direct.name), Side(systems.hyper_t5.name), POINT, decides=False
        ),
    ]  # fmt: skip
    return Claim(
        3,
        "HART, layer after layer, beats HyperT5, which asks for all layers at once.",
        tuple(all_of_them),
        tuple(found),
        (
            Curve(
                "score over depth, equal steps", "layers of either stack", "score",
                {name: tuple(sorted(points, key=lambda point: point[0])) for name, points in lines.items()},
            ),
        ),
        published="HART beats HyperT5 on P3 and S-NI with T5-Large; its cost is not published [2].",
    )  # fmt: skip


def at_equal_flops(ours: Experiment, theirs: Experiment) -> Experiment:
    """Returns `ours` with the steps that the floating-point operations of `theirs` suffice for.

    Operations are counted in closed form (`flops`). Where the steps change by less than a share of `EQUAL`, `ours`
    itself is returned: its run is that at equal operations, too.
    """
    # Both are hypernetworks, whose operations are known.
    steps = round(theirs.steps * theirs.flops_per_step / ours.flops_per_step)  # pyrefly: ignore[unsupported-operation]
    if abs(steps - ours.steps) < EQUAL * ours.steps:
        return ours
    return ours.replace(name=f"{ours.name}_equal_flops", steps=steps)


def consistent(experiment: Experiment, weight: float) -> Experiment:
    """Returns the experiment with two supports of every task and a weight on how far apart their states are."""
    episodes = experiment.episodes.replace(supports=2)
    return variant(experiment, f"consistency_{weight:g}", episodes=episodes, consistency=weight)


def _consistency(systems: Systems) -> Claim:
    decisive, *others = systems.setting.consistency
    found, all_of_them = [], []
    for plain in (systems.hart, systems.hyper_t5):
        pulled = consistent(plain, decisive)
        all_of_them += [plain, pulled]
        decides, name = plain is systems.hart, "HART" if plain is systems.hart else "HyperT5"
        ours, theirs = Side(pulled.name), Side(plain.name)
        found += [
            Comparison(
                f"consistency makes scores of {name} vary less over supports", ours, theirs, 0.005,
                statistic="spread", better="lower", decides=decides,
                published="not published: its reviewers asked for it [2]",
            ),
            Comparison(
                f"consistency removes loss spikes of {name}", Side(pulled.name, "loss_spikes"),
                Side(plain.name, "loss_spikes"), 0.5, statistic="figure", better="lower", decides=decides,
                published="loss spikes vanish [2]",
            ),
            Comparison(
                f"consistency draws adapters of {name} together: distance within over between tasks",
                Side(pulled.name, "within_over_between"), Side(plain.name, "within_over_between"), 0.01,
                statistic="figure", better="lower", decides=decides,
            ),
            Comparison(
                f"consistency raises the score of {name}", ours, theirs, 0.005, decides=False,
                published="about +0.5 points [2]",
            ),
        ]  # fmt: skip
    stronger = [consistent(systems.hart, weight) for weight in others]
    points = [(0.0, systems.hart), *((one.consistency, one) for one in (all_of_them[1], *stronger))]
    return Claim(
        4,
        "Consistency makes what is generated depend less on which examples were shown, and training smoother.",
        (*all_of_them, *stronger),
        tuple(found),
        (
            Curve(
                "HART over the weight of consistency", "weight", "score",
                {"HART": tuple((weight, Side(one.name)) for weight, one in points)},
            ),
        ),
        published="Weights 1, 10 and 20 on hidden states; about +0.5 points, loss spikes vanish [2].",
    )  # fmt: skip


def _ablations(systems: Systems) -> Claim:
    setting, plain, hart = systems.setting, systems.hyper_t5, systems.hart
    reference = Side(plain.name)
    distilled = variant(
        plain,
        "distilled",
        episodes=plain.episodes.replace(teacher="definition", teacher_length=setting.teacher_length),
        distillation=setting.distillation,
    )
    near = ReconstructionExperiment.like(
        variant(plain, "reconstruction"), task_adapters=setting.task_adapters, reconstruction=setting.reconstruction
    )
    # All examples in one row that is as long as their rows together.
    episodes = plain.episodes
    joint = variant(
        plain,
        "joint",
        episodes=episodes.replace(support_layout="joint", support_length=episodes.rows * episodes.support_length),
    )
    right = systems.hyperpretrained(hart, setting.hyperpretraining[1])
    muon, hart_muon = (MuonExperiment.like(variant(one, "muon")) for one in (plain, hart))
    # Muon's steps take longer: AdamW gets as many more.
    longer = variant(plain, "longer", steps=round(plain.steps * setting.muon_seconds))
    per_step = episodes.tasks_per_batch * episodes.examples
    scored = {
        count: variant(plain, f"scored_{count}", episodes=episodes.replace(
            examples=count, tasks_per_batch=max(1, per_step // count)))
        for count in setting.scored if count != episodes.examples
    }  # fmt: skip
    ranks = {
        # alpha grows with the rank, so that the factor before b stays what it is
        rank: variant(systems.sized, f"rank_{rank}", adapter=setting.lora.resized(rank))
        for rank in setting.ranks if rank != setting.lora.rank
    }  # fmt: skip
    lengths = {
        length: variant(systems.sized_prefix, f"length_{length}", adapter=setting.prefix.resized(length))
        for length in setting.prefix_lengths if length != setting.prefix.length
    }  # fmt: skip
    sites = {
        label: variant(systems.sized, "sites_" + label.replace(" ", "_"),
                        adapter=dataclasses.replace(setting.lora, sites=patterns))
        for label, patterns in setting.sites if patterns != setting.lora.sites
    }  # fmt: skip
    few, many = setting.shots[0], setting.shots[-1]
    found = [
        Comparison(
            "HART gains from hyperpretraining", Side(right.name), Side(hart.name), POINT, decides=False,
            published="not published: HART is said not to need it, its reviewers missed it [2]",
        ),
        Comparison(
            "distillation from the base that reads the definition helps", Side(distilled.name), reference, POINT,
            published="without it TAGI loses 2 to 3 points [2]",
        ),
        Comparison(
            "nearness to adapters of the tasks' own helps", Side(near.name), reference, POINT, decides=False,
            published="HyperLoRA's weight of 0.2, 1.2 diverges [P]; TAGI aligns parameters, too; no figure at hand",
        ),
        Comparison(
            "fusion in decoder beats one joint row", reference, Side(joint.name), POINT,
            published="no figure is known",
        ),
        Comparison(
            f"{many} shots beat {few}", Side(plain.name, shots(many)), Side(plain.name, shots(few)), POINT,
            published="P3 with up to 16 shots [M]; no curve is known",
        ),
        Comparison(
            "Muon instead of AdamW helps", Side(muon.name), reference, POINT, decides=False,
            published="not of the papers",
        ),
        Comparison(
            "Muon helps against AdamW for as many seconds", Side(muon.name), Side(longer.name), POINT, decides=False
        ),
        Comparison("with Muon, HART against HyperT5", Side(hart_muon.name), Side(muon.name), POINT, decides=False),
    ]  # fmt: skip
    found += [
        Comparison(f"{label} against the reference", Side(one.name), Side(of.name), POINT, decides=False)
        for variants, of, text in (
            (scored, plain, "{} scored examples per support"),
            (ranks, systems.sized, "LoRA rank {}"),
            (lengths, systems.sized_prefix, "prefix length {}"),
            (sites, systems.sized, "sites: {}"),
        )
        for label, one in ((text.format(key), one) for key, one in variants.items())
    ]

    def line(variants: dict[int, Experiment], here: int, of: Experiment) -> tuple[tuple[float, Side], ...]:
        return tuple((key, Side(one.name)) for key, one in sorted({**variants, here: of}.items()))

    return Claim(
        5,
        "What the parts of the recipe contribute.",
        (plain, hart, right, distilled, near, joint, muon, longer, hart_muon, systems.sized, systems.sized_prefix,
         *scored.values(), *ranks.values(), *lengths.values(), *sites.values()),
        tuple(found),
        (
            Curve("score over shots", "support examples at evaluation", "score",
                  {"HyperT5": tuple((count, Side(plain.name, shots(count))) for count in setting.shots)}),
            Curve("score over scored examples per support", "scored examples", "score",
                  {"HyperT5": line(scored, episodes.examples, plain)}),
            Curve("score over size", "LoRA rank, prefix length", "score",
                  {"LoRA": line(ranks, setting.lora.rank, systems.sized),
                   "prefix": line(lengths, setting.prefix.length, systems.sized_prefix)}),
        ),
        published="TAGI: the divergence is worth 2 to 3 points [2]; the other ablations are not published.",
    )  # fmt: skip


def shots(count: int) -> str:
    """The measure of generated adapters from so many support examples."""
    return f"generated_{count}_shots"


def tuned(start: str, examples: int, what: str) -> str:
    """A measure of a `Tuning`: `what` is `score_STEP`, `loss_STEP` or `marks_to_loss`."""
    return f"{start}_{examples}_{what}"


def _initialisation(systems: Systems) -> Claim:
    setting = systems.setting
    last, most = setting.tuning_marks[-1], setting.tuning_train_examples[-1]
    shown = setting.tuning_train_examples[0]
    found, tunings, curves = [], [], []
    for ours, shared in ((systems.hyper_t5, systems.shared), (systems.hyper_t5_prefix, systems.shared_prefix)):
        kind = ours.spec.kinds[0].kind
        tuning = Tuning(
            name=f"tuning_{kind}",
            hypermodel=ours,
            shared=shared,
            tasks=setting.tuning_tasks,
            rate_tasks=setting.tuning_rate_tasks,
            examples=setting.tuning_examples,
            train_examples=setting.tuning_train_examples,
            rates=setting.tuning_rates,
            marks=setting.tuning_marks,
            seeds=setting.seeds,
        )
        tunings.append(tuning)

        def side(start: str, what: str, count: int = most, name: str = tuning.name) -> Side:
            return Side(name, tuned(start, count, what))

        for other in ("random", "shared"):
            found += [
                Comparison(
                    f"after {last} steps of {kind} tuning on {most} examples, generated beats {other}",
                    side("generated", f"score_{last}"), side(other, f"score_{last}"), POINT,
                    published="generated beats random and shared [P]; no figure at hand",
                ),
                Comparison(
                    f"{kind} tuning on {most} examples reaches the given loss sooner from generated than from {other}",
                    side("generated", "marks_to_loss"), side(other, "marks_to_loss"), 0.25, better="lower",
                    published="faster [M]",
                ),
            ]  # fmt: skip
        found += [
            Comparison(
                f"refining {kind} on the very support helps: {last} steps on {shown} examples against none",
                side("generated", f"score_{last}", shown), side("generated", f"score_{setting.tuning_marks[0]}", shown),
                POINT, decides=False,
            ),
            Comparison(
                f"{last} steps of {kind} tuning on {shown} examples, generated against shared",
                side("generated", f"score_{last}", shown), side("shared", f"score_{last}", shown), POINT, decides=False,
            ),
        ]  # fmt: skip
        curves += [
            Curve(
                f"{kind} tuned on {count} examples", "steps", what,
                {start: tuple((mark, side(start, f"{what}_{mark}", count)) for mark in setting.tuning_marks)
                 for start in ("generated", "shared", "random")},
            )
            for count in setting.tuning_train_examples for what in ("loss", "score")
        ]  # fmt: skip
    return Claim(
        6,
        "Generated adapters are a better start for further tuning than a shared or a random one.",
        (systems.hyper_t5, systems.shared, systems.hyper_t5_prefix, systems.shared_prefix, *tunings),
        tuple(found),
        tuple(curves),
        published="Generated parameters as initialisation beat random and shared ones [P] and converge faster [M].",
    )
