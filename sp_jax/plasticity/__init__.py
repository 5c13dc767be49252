"""Later methods against loss of plasticity, to compare with shrink-perturb, as pure functions on parameter pytrees.

Method              Paper                             Acts                      Function
------------------  --------------------------------  ------------------------  --------------------------------------
DASH                Shin et al., NeurIPS 2024         between rounds            `average_gradient`, `dash`
FIRE                Han et al., ICLR 2026             between rounds            `orthogonalize`
L2 Init             Kumar et al. 2023                 every step, the gradient  `l2_init`, `l2_init_penalty`
Hare and Tortoise   Lee et al., ICML 2024             every step, and jumps     `hare_tortoise`, `follow`
ReDo                Sokar et al., ICML 2023           now and then, on units    `redo`, `dormancy`
Continual backprop  Dohare et al., Nature 2024        every step, on units      `continual_backprop`, `init_utility`
SNR                 Farias and Jozefiak, ICLR 2025    every step, on units      `observe_silence`, `replace_silent`, …
UPGD                Elsayed and Mahmood, ICLR 2024    every step, the gradient  `weight_utility`, `upgd`
Spectral            Lewandowski et al., ICLR 2025     every step, the gradient  `power_iteration`, `spectral_penalty`
Parseval            Chung et al., NeurIPS 2024        every step, the gradient  `parseval_penalty`
Soft rescaling      Oh et al. 2025                    every step, on weights    `weight_norms`, `soft_rescaling`
Weight clipping     Elsayed et al., RLC 2024          every step, on weights    `clip_weights`

Methods on units are given `Link`s, the paths of a unit's weights, and return which entries changed, so that
`sp_jax.reset_changed` can reset the optimiser's moments there. `sp_jax.restarts` has the first two in the form that the
engine runs (`python -m experiments.run --restart=…`), `sp_jax.plasticity.methods` has all others (`--method=…`).

The defaults are the papers' settings. Where paper, authors' program and this package differ in what they do:

- DASH: one gradient for each arrival of samples, in evaluation mode, as the program; it keeps SGD's momentum.
- FIRE: all kernels, the head's too, as the program on convolutional networks; on transformers it takes q and k alone.
- L2 Init: c·‖θ - θ₀‖² on all parameters, as the paper; the program has c/2 and leaves norms out, so c here is 2c there.
- Hare and Tortoise: jumps after the epochs 0, 10, 20, … of each round, as the program; there the tortoise's statistics
  are a plain exponential average, here one corrected for the bias towards the initial 0 and 1, also after a restart.
- ReDo: redrawn units keep the moments of their biases and Adam's one step count, as in the program; this makes steps of
  up to 6.6 learning rates. The program draws Xavier-uniform weights; here they come from the network's own initialiser.
- Continual backprop: the paper's formulas on activations after the step, and in `experiments.run` an Adam with a step
  count for each entry, zeroed at a reset, as the program's (`sp_jax.transforms.optimizer_state`). The program adds
  nothing to the next layer's biases, as it zeroes the mean first, and adds Adam's eps to the uncorrected root.

- SNR: a task is a round, and ages are of activations after the step. Ages are binned by 100 samples, which is exact
  for the authors' batches of 100; the first threshold, which they do not publish, is 10,000 samples.
- UPGD: the paper's η, the largest corrected utility; the program divides by the largest uncorrected one. It is UPGD-W
  with `--optimizer=sgd --weight_decay=…`.
- Spectral: the paper's formulas; its authors published no program.
- Parseval: each layer's own width, and convolutions as one matrix; the head is the layer of that name, and weights are
  orthogonal at first only if the network's initialiser makes them so.
- Soft rescaling: a bias follows its own layer alone where links do not say what comes before; one λ for all layers, and
  first norms that stay when the learning rate drops. Its authors published no program.
- Weight clipping: normalisations stay; the program clips their parameters by the fan-in of the kernel before them.

In `experiments.run` all of them start each round with a new optimiser and, unless `--statistics` says otherwise, new
running statistics, as in the experiments of Ash and Adams: DASH's and FIRE's authors keep the statistics.

Scalars (strength, decay, shrink, threshold, rate, …) may be traced under `jit`, `vmap` and `scan`. Leaves are computed
in at least float32 and returned in their own dtype; those that are not floating or complex stay as they are. DASH,
FIRE, both penalties and weight clipping need the role of each axis of a kernel: where the number of axes does not
determine it, `kinds` must.
"""

from sp_jax.plasticity.continual_backprop import Utility, continual_backprop, init_utility
from sp_jax.plasticity.dash import average_gradient, dash
from sp_jax.plasticity.fire import orthogonalize
from sp_jax.plasticity.hare_tortoise import HareTortoiseState, follow, hare_tortoise, jumps
from sp_jax.plasticity.l2_init import L2InitState, l2_init, l2_init_penalty
from sp_jax.plasticity.redo import dormancy, redo
from sp_jax.plasticity.regularizers import (
    SingularVectors,
    init_singular_vectors,
    parseval_penalty,
    power_iteration,
    spectral_penalty,
)
from sp_jax.plasticity.rescaling import clip_weights, soft_rescaling, weight_norms
from sp_jax.plasticity.snr import SilenceState, init_silence, observe_silence, replace_silent, update_thresholds
from sp_jax.plasticity.units import Link, check_links, replace_units
from sp_jax.plasticity.upgd import init_weight_utility, upgd, weight_utility

__all__ = [
    "HareTortoiseState", "L2InitState", "Link", "SilenceState", "SingularVectors", "Utility", "average_gradient",
    "check_links", "clip_weights", "continual_backprop", "dash", "dormancy", "follow", "hare_tortoise", "init_silence",
    "init_singular_vectors", "init_utility", "init_weight_utility", "jumps", "l2_init", "l2_init_penalty",
    "observe_silence", "orthogonalize", "parseval_penalty", "power_iteration", "redo", "replace_silent",
    "replace_units", "soft_rescaling", "spectral_penalty", "update_thresholds", "upgd", "weight_norms",
    "weight_utility",
]  # fmt: skip
