"""The reference of the benchmark: the same training in PyTorch, written in two ways (extra `benchmark`).

`dataloader` is the way of the authors' program and most research code: each image through PIL, ToTensor and Normalize
in a DataLoader, the accuracy read back at every step. `tuned` is carefully optimised plain PyTorch: all data as one
tensor on the device, batches by indexing, fused Adam, channels_last, nothing read back inside an epoch.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from experiments.config.settings import Settings
from sp_jax.types import Dataset

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Block(nn.Module):
    """The ResNet's basic block."""

    def __init__(self, channels: int, features: int, stride: int):
        """Make two 3x3 convolutions beside an identity, or a 1x1 convolution where the shape changes."""
        super().__init__()
        self.conv_0, self.norm_0 = _conv(channels, features, 3, stride), nn.BatchNorm2d(features)
        self.conv_1, self.norm_1 = _conv(features, features, 3, 1), nn.BatchNorm2d(features)
        same = stride == 1 and channels == features
        shortcut = () if same else (_conv(channels, features, 1, stride), nn.BatchNorm2d(features))
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[B, C, H, W]` to `[B, features, H / stride, W / stride]`."""
        y = functional.relu(self.norm_0(self.conv_0(x)), inplace=True)
        return functional.relu(self.norm_1(self.conv_1(y)) + self.shortcut(x), inplace=True)


def _conv(channels, features, size, stride):
    return nn.Conv2d(channels, features, size, stride, size // 2, bias=False)


def network(settings: Settings, data: Dataset) -> nn.Module:
    """Make the network of some settings: `logistic`, `mlp` or `resnet18`, with PyTorch's own initialisation."""
    shape, classes = data.inputs.shape[1:], data.num_classes
    if settings.model == "resnet18":
        width = settings.width
        layers = [_conv(shape[2], width, 3, 1), nn.BatchNorm2d(width), nn.ReLU()]
        for stage, blocks in enumerate(settings.stage_sizes):
            for block in range(blocks):
                features = settings.width * 2**stage
                layers.append(Block(width, features, 2 if stage and not block else 1))
                width = features
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    else:
        sizes = [int(np.prod(shape)), *(settings.hidden if settings.model == "mlp" else ())]
        act = {"tanh": nn.Tanh, "relu": nn.ReLU}[settings.activation]
        hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), act())]
        layers = [nn.Flatten(), *hidden, nn.Linear(sizes[-1], classes)]
    return nn.Sequential(*layers).to(DEVICE)


def dataloader(settings: Settings, data: Dataset) -> Callable[[int], int]:
    """Make an epoch in the authors' way: `epoch(num_visible)` trains on so many first samples, returns how many."""
    model = network(settings, data)
    optimizer = _optimizer(settings, model, fused=False)
    model.train()

    def epoch(num_visible):
        samples = Images(data, num_visible)
        loader = torch.utils.data.DataLoader(samples, batch_size=settings.batch_size, shuffle=True)
        correct = 0
        for x, y in loader:
            x, y = x.to(DEVICE), y.to(DEVICE)
            optimizer.zero_grad()
            logits = model(x)
            loss = functional.cross_entropy(logits, y)
            correct += torch.sum(logits.argmax(1) == y).item()
            loss.backward()
            optimizer.step()
        return num_visible

    return epoch


class Images(torch.utils.data.Dataset):
    """Samples one by one: pixels through PIL to a tensor, normalised; floats as they are."""

    def __init__(self, data: Dataset, count: int):
        """Take the first `count` samples."""
        self.inputs, self.labels = np.asarray(data.inputs[:count]), np.asarray(data.labels[:count]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """Return an image as torchvision's ToTensor and Normalize(0.5, 0.5) do, and its label."""
        if self.inputs.dtype != np.uint8:
            return torch.from_numpy(self.inputs[i].transpose(2, 0, 1)), self.labels[i]
        pixels = torch.from_numpy(np.array(Image.fromarray(self.inputs[i]))).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255).sub(0.5).div(0.5), self.labels[i]


class Tuned:
    """A network and its data on the device; see the module."""

    def __init__(self, settings: Settings, data: Dataset):
        """Put all samples on the device."""
        self.settings, self.data = settings, data
        layout = torch.channels_last
        inputs = torch.from_numpy(np.ascontiguousarray(np.asarray(data.inputs).transpose(0, 3, 1, 2)))
        self.inputs = inputs.contiguous(memory_format=layout).to(DEVICE)
        self.labels = torch.from_numpy(np.array(data.labels, np.int64)).to(DEVICE)
        self.half = settings.precision == "bfloat16"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
        torch.backends.cudnn.benchmark = True
        self.restart(None)

    def restart(self, amounts: tuple[float, float] | None) -> None:
        """Draw a fresh network, or where λ and σ are given make λ · the old + σ · a fresh one; make a new optimiser."""
        fresh = network(self.settings, self.data).to(memory_format=torch.channels_last)
        if amounts is not None:
            with torch.no_grad():
                for new, old in zip(fresh.parameters(), self.model.parameters(), strict=True):
                    new.mul_(amounts[1]).add_(old, alpha=amounts[0])
        self.model, self.optimizer = fresh, _optimizer(self.settings, fresh, fused=True)
        self.model.train()

    def epoch(self, order: torch.Tensor) -> torch.Tensor:
        """Train one pass over samples by their indices, shuffled; return the right predictions, on the device."""
        shuffled = order[torch.randperm(len(order), device=order.device)]
        correct = torch.zeros((), dtype=torch.long, device=DEVICE)
        for chosen in shuffled.split(self.settings.batch_size):
            x, y = self.inputs[chosen], self.labels[chosen]
            if x.dtype == torch.uint8:
                x = x.float().div_(127.5).sub_(1)
            with torch.autocast(DEVICE, torch.bfloat16, enabled=self.half):
                logits = self.model(x)
                loss = functional.cross_entropy(logits, y)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            correct += (logits.argmax(1) == y).sum()
        return correct


def tuned(settings: Settings, data: Dataset) -> Callable[[int], int]:
    """Make an epoch of `Tuned`: `epoch(num_visible)` trains on so many first samples, returns how many."""
    trained = Tuned(settings, data)

    def epoch(num_visible):
        int(trained.epoch(torch.arange(num_visible, device=DEVICE)))  # waits for the device
        return num_visible

    return epoch


def experiment_in_torch(
    settings: Settings, data: Dataset, arrivals: Sequence[int], amounts: Sequence[tuple[float, float]]
) -> Callable[[int], int]:
    """Make whole experiments in `tuned`: all rounds to convergence for each λ, σ; `run(_)` returns samples visited."""
    trained = Tuned(settings, data)
    order = torch.randperm(2 * len(data.labels) // 3, device=DEVICE)

    def run(_):
        visited = 0
        for pair in amounts:
            trained.restart(None)
            for i, num_visible in enumerate(arrivals):
                if i:
                    trained.restart(pair)
                for _ in range(settings.max_epochs):
                    visited += num_visible
                    if int(trained.epoch(order[:num_visible])) >= settings.train_accuracy * num_visible:
                        break
        return visited

    return run


def _optimizer(settings, model, *, fused):
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.Adam(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=fused)
