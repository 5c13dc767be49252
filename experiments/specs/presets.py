"""Settings that several experiments share."""

# Sections 2.2 and 4: Adam 0.001, batches of 128, five seeds; the width is that of the authors' own network.
RESNET = {"dataset": "cifar10", "model": "resnet18", "width": 16, "activation": "relu"}
# Section 3: plain SGD.
RESNET_SGD = {**RESNET, "optimizer": "sgd"}
# On `mixture` plain SGD needs a larger rate to fit the data in minutes.
QUICK_SGD = {"optimizer": "sgd", "learning_rate": 0.1, "seeds": 3}
# A narrow ResNet of two blocks, where BatchNorm matters, on images whose motifs may be anywhere.
QUICK_RESNET = {
    "dataset": "textures", "model": "resnet18", "width": 8, "stage_sizes": (1, 1), "optimizer": "sgd",
    "learning_rate": 0.1, "batch_size": 32, "seeds": 3,
}  # fmt: skip

# Figure 15: 36 cells with the baselines (1, 0) and (0, 1); the paper prints 28, the others could not be trained.
GRID = {"shrink": ("1", "0.8", "0.6", "0.4", "0.2", "0"), "noise_scale": ("1", "0.1", "0.01", "0.001", "0.0001", "0")}
BASELINES = {"restart": ("warm_start", "random_init")}
PAIRS = ("0.8:0.01", "0.6:0.01", "0.4:0.01", "0.2:0.01")  # λ over its range, at one σ
WARM, RANDOM = {"restart": (("warm_start",),)}, {"restart": (("random_init",),)}  # a variant of one baseline alone
STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4)  # Table 3
BATCH_SIZES, LEARNING_RATES = (16, 32, 64, 128), (0.001, 0.01, 0.1)  # Figure 3
