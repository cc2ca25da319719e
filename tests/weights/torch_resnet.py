"""A ResNet in PyTorch with torchvision's names, written for the tests from the paper: what its weights must fit."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels, planes, stride, bottleneck, groups, widen):
        super().__init__()
        inside, outside = planes * widen, planes * (4 if bottleneck else 1)
        if bottleneck:
            layers = [(channels, inside, 1, 1, 1), (inside, inside, 3, stride, groups), (inside, outside, 1, 1, 1)]
        else:
            layers = [(channels, planes, 3, stride, 1), (planes, planes, 3, 1, 1)]
        for index, (before, after, size, step, parts) in enumerate(layers, start=1):
            conv = nn.Conv2d(before, after, size, step, size // 2, groups=parts, bias=False)
            setattr(self, f"conv{index}", conv)
            setattr(self, f"bn{index}", nn.BatchNorm2d(after))
        self.depth = len(layers)
        self.downsample = None
        if stride > 1 or channels != outside:
            shortcut = nn.Conv2d(channels, outside, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outside))

    def forward(self, x):
        y = x
        for index in range(1, self.depth + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
            y = torch.relu(y) if index < self.depth else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, stage_sizes, bottleneck=True, groups=1, widen=1, width=64, classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels, self.stages = width, len(stage_sizes)
        for stage, blocks in enumerate(stage_sizes):
            planes, layers = width * 2**stage, []
            for index in range(blocks):
                layers.append(Block(channels, planes, 1 if index or not stage else 2, bottleneck, groups, widen))
                channels = planes * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))
