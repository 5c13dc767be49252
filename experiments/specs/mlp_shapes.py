"""Which MLP with tanh Tables 1 and 2 are of: the paper does not say how wide and deep it was, or how it was drawn.

Two and three hidden layers of 100 units, with and without bias; their weights with tanh's gain; samples in the order in
which they arrived, never shuffled. All else is as in `table1`, by SGD and Adam; the report ranks them by how far they
lie from the paper's numbers.

Quick: `mixture`, Adam, 100 epochs at most, two seeds; a minute. Expect: 62.3 % from random init, 59.9 % without bias,
50.6 % with tanh's gain; no ranking, as the paper has no numbers for these data.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

LAYERS = ((100, 100), (100, 100, 100))
SHAPES = (
    {"hidden": LAYERS, "bias": (True, False)},
    {"hidden": LAYERS, "init": ("torch_tanh",)},
    {"shuffle": ("never",)},
)
OPTIMIZERS = {"optimizer": ("sgd", "adam")}

EXPERIMENT = Experiment(
    name="mlp_shapes",
    paper="Tables 1, 2",
    summary="which tanh MLP Table 1 is of: layers, biases, initialisation, order of samples",
    schedule=schedules.two_phase,
    presets={
        "quick": {**presets.BASELINES, "seeds": 2, "max_epochs": 100, "vary": SHAPES},
        "paper": {**presets.BASELINES, "dataset": "cifar10", "vary": tuple(shape | OPTIMIZERS for shape in SHAPES)},
    },
    figures=(("final", {}),),
    over=("hidden", "bias", "init", "shuffle"),
    nearest_to="table1",
)
