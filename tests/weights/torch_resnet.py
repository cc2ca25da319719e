"""A ResNet in PyTorch with torchvision's names, written from the paper as a reference for the tests."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels, planes, stride, bottleneck, groups, widen):
        super().__init__()
        inner = planes * widen
        outer = planes * (4 if bottleneck else 1)
        if bottleneck:
            layers = [(channels, inner, 1, 1, 1), (inner, inner, 3, stride, groups), (inner, outer, 1, 1, 1)]
        else:
            layers = [(channels, planes, 3, stride, 1), (planes, planes, 3, 1, 1)]
        for index, (in_channels, out_channels, size, step, conv_groups) in enumerate(layers, start=1):
            conv = nn.Conv2d(in_channels, out_channels, size, step, size // 2, groups=conv_groups, bias=False)
            setattr(self, f"conv{index}", conv)
            setattr(self, f"bn{index}", nn.BatchNorm2d(out_channels))
        self.depth = len(layers)
        self.downsample = None
        if stride > 1 or channels != outer:
            shortcut = nn.Conv2d(channels, outer, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outer))

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
        self.stages = len(stage_sizes)
        channels = width
        for stage, blocks in enumerate(stage_sizes):
            planes = width * 2**stage
            layers = []
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(Block(channels, planes, stride, bottleneck, groups, widen))
                channels = planes * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))
