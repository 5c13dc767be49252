"""The leaderboard of plasticity (not in the paper): methods against its loss, on three streams of tasks, tuned alike.

Streams: `permuted_inputs` (2,000 samples seen once a task, 32 tasks) and `random_labels` (320 samples memorised in 30
epochs a task, 12 tasks), where a network that is trained on learns worse and worse, and `growing`, the paper's own (16
rounds of 6 epochs), where it generalises worse. Every contender has the same number of settings to choose from, four,
and chooses on a half of the samples with seeds of its own; what counts is five other seeds on the other half, which the
choice never sees. Networks, optimisers and moments go on from task to task: nothing is reset but what a contender
resets; shrink-perturb, FIRE and random init begin each task with a new optimiser, as their authors have it.

Quick: `mixture`, MLP 100-100 ReLU, Adam, batches of 16. `paper`: one stream at a time at a published setting, see
experiments/docs/leaderboard.md.
"""

from collections.abc import Mapping

from experiments.config import own_methods
from experiments.config.fields import UsageError, check_choice
from experiments.specs import schedules
from experiments.specs.base import Experiment

FOUR_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
RATES = {"learning_rate": (1e-3, 3e-3)}
NEW = {"optimizer_state": ("reset",), "statistics": ("reset",)}  # at each restart


def _method(name: str, *strengths: float) -> dict[str, tuple]:
    return {"method": (name,), "method_strength": strengths, **RATES}


# What is varied of each contender is what it is tuned over: four settings each.
CONTENDERS: Mapping[str, Mapping[str, tuple]] = {
    "none": {"learning_rate": FOUR_RATES},
    "new_optimizer": {"learning_rate": FOUR_RATES, "optimizer_state": ("reset",)},
    "l2": {"weight_decay": (1e-4, 1e-3), **RATES},
    "layer_norm": {"norm": ("layer",), "learning_rate": FOUR_RATES},
    "leaky_relu": {"activation": ("leaky_relu",), "learning_rate": FOUR_RATES},
    "crelu": {"activation": ("crelu",), "learning_rate": FOUR_RATES},
    "l2_init": _method("l2_init", 5e-5, 5e-4),
    "hare_tortoise": _method("hare_tortoise", 0.99, 0.999),
    "redo": _method("redo", 0.025, 0.1),
    "continual_backprop": _method("continual_backprop", 1e-4, 1e-3),
    "self_normalized_resets": _method("self_normalized_resets", 0.92, 0.96),
    "upgd": {
        "method": ("upgd",), "method_strength": (0.001, 0.01), "optimizer": ("sgd",), "weight_decay": (0.001,),
        "learning_rate": (0.03, 0.1),
    },
    "spectral": _method("spectral", 1e-4, 1e-3),
    "parseval": _method("parseval", 1e-4, 1e-3),
    "soft_rescaling": _method("soft_rescaling", 1e-4, 1e-3),
    "weight_clipping": _method("weight_clipping", 1.0, 3.0),
    "random_init": {"restart": (("random_init",),), **NEW, "learning_rate": FOUR_RATES},
    "shrink_perturb": {
        "restart": (("shrink_perturb",),), **NEW, "pairs": (("0.6:0.01",), ("0.4:0.1",)), **RATES,
    },
    "dash": {"restart": (("dash",),), "shrink": (("0.1",), ("0.3",)), **RATES},
    "fire": {"restart": (("fire",),), **NEW, "learning_rate": FOUR_RATES},
}  # fmt: skip
STREAMS: Mapping[str, Mapping[str, tuple]] = {
    "permuted_inputs": {"samples_per_round": (2_000,), "epochs": (1,), "rounds": (32,)},
    "random_labels": {"samples_per_round": (320,), "epochs": (30,), "rounds": (12,)},
    "growing": {"epochs": (6,)},
}
CIFAR = {"dataset": ("cifar10",)}
RESNET = {**CIFAR, "model": ("resnet18",), "width": (64,), "batch_size": (256,)}
PUBLISHED: Mapping[
    str, Mapping[str, tuple]
] = {  # the first two after Kumar et al. 2023, the third after Han et al. 2026
    "permuted_inputs": {**CIFAR, "samples_per_round": (10_000,), "epochs": (1,), "rounds": (500,)},
    "random_labels": {**CIFAR, "samples_per_round": (1_200,), "epochs": (400,), "rounds": (50,)},
    "growing": {**RESNET, "samples_per_round": (1_667,), "epochs": (100,)},
}
# What contenders differ in or are tuned over, and so no flag says.
DECIDED = {
    "noise_scale", "penalty", "penalty_strength", "samples", "trained", "with_streams",
    *(name for contender in CONTENDERS.values() for name in contender),
}  # fmt: skip
PARTS = {"samples": ("tuning", "final")}
BASE = {
    "activation": "relu", "batch_size": 16, "optimizer_state": "keep", "statistics": "keep", "restart": ("warm_start",),
    "measures": ("online_accuracy",), "keep_networks": "none",
}  # fmt: skip


def products(streams: Mapping[str, Mapping[str, tuple]], explicit: Mapping[str, tuple]):
    """Return the grid, a product for each stream and contender, and the names of the flags that it has used up.

    `explicit` are the flags that were given: `contenders` may name any of `CONTENDERS`, or a method from outside, which
    is then tuned over its `strengths` and two learning rates, or four where it has one strength; `task_stream` any of
    the streams.

    Raises:
      UsageError: an unknown name; a flag of what contenders differ in.
    """
    for name in sorted(DECIDED & {*explicit}):
        raise UsageError(
            f"--{name} does not fit --experiment=plasticity, whose contenders differ in it; choose "
            "them by --contenders=none,l2_init,…"
        )
    (names,) = explicit.get("contenders", (tuple(CONTENDERS),))
    asked = explicit.get("task_stream", tuple(streams))
    for name in asked:
        check_choice("--task_stream", name, tuple(streams))
    alike = len({_compiled(each) for each in streams.values()}) == 1
    parts = {**PARTS, "with_streams": (tuple(streams) if alike else None,)}
    parts |= {name: explicit[name] for name in ("rounds", "samples_per_round") if name in explicit}  # of all streams
    made = ((stream, name) for stream in asked for name in names)
    grid = tuple({"task_stream": (s,), **streams[s], **parts, **_candidates(name)} for s, name in made)
    return grid, ("task_stream",)


def _compiled(stream):
    """Return what a stream's programs are compiled for, beside the contender."""
    return tuple(stream.get(name) for name in ("dataset", "model", "width", "batch_size"))


def _candidates(name):
    if name in CONTENDERS:
        return CONTENDERS[name]
    if ":" not in name:
        names = tuple(dict.fromkeys((*CONTENDERS, *own_methods.names(), "package.module:name")))
        check_choice("--contenders", name, names)
    method = own_methods.find(name)
    strengths = dict.fromkeys(method.strengths or (method.default_strength, 10 * method.default_strength))
    if len(strengths) > 2:
        raise UsageError(f"--contenders={name}: the method has {len(strengths)} strengths; expected one or two")
    rates = {"learning_rate": FOUR_RATES} if len(strengths) == 1 else RATES
    return _method(name, *strengths) | rates


EXPERIMENT = Experiment(
    name="plasticity",
    paper="(later methods)",
    summary="methods against the loss of plasticity on streams of tasks, tuned alike: a leaderboard",
    schedule=schedules.online,
    presets={
        "quick": {**BASE, "vary": lambda explicit: products(STREAMS, explicit)},
        "paper": {**BASE, "dataset": "cifar10", "vary": lambda explicit: products(PUBLISHED, explicit)},
    },
    figures=(("leaderboard", {}), ("tasks", {})),
    tuned=True,
)
