"""The tutorials' ResNet-50 in PyTorch, up to the logits, as a reference for benchmarks."""

import torch
from torch import nn

NORM = {"eps": 1e-3, "momentum": 0.01}  # PyTorch's momentum is the weight of the new value


class Block(nn.Module):
    """A bottleneck block; its stride is in the first 1×1 convolution, as in the tutorials."""

    def __init__(self, channels, inner, stride, project):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, inner, 1, stride),
            nn.BatchNorm2d(inner, **NORM),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=1),
            nn.BatchNorm2d(inner, **NORM),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, 4 * inner, 1),
            nn.BatchNorm2d(4 * inner, **NORM),
        )
        projection = [nn.Conv2d(channels, 4 * inner, 1, stride), nn.BatchNorm2d(4 * inner, **NORM)]
        self.shortcut = nn.Sequential(*projection if project else [])

    def forward(self, x):
        return torch.relu(self.main(x) + self.shortcut(x))


def torch_resnet50(classes=6, size=64):
    """Returns a module of (batch, 3, size, size) images that returns logits, (batch, classes)."""
    layers = [nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64, **NORM), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)]
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for index in range(blocks):
            layers.append(Block(channels, inner, 2 if stage and not index else 1, project=not index))
            channels = 4 * inner
    trunk = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten())
    with torch.no_grad():
        features = trunk.eval()(torch.zeros(1, 3, size, size)).shape[1]
    return nn.Sequential(trunk.train(), nn.Linear(features, classes))
