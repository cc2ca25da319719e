"""Tests the diagrams: every layer is drawn, boxes and texts do not overlap, and the files are reproducible."""

import re
import sys
from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

import flaxresnet as fr
from flaxresnet.cli import main as commands
from flaxresnet.visualize import diagram
from flaxresnet.visualize.layer_table import inspect

NETWORKS = {
    "bottlenecks": fr.ResNet(num_classes=6, stage_sizes=(2, 1)),
    "two convolutions": fr.ResNet(num_classes=6, stage_sizes=(1, 2), bottleneck=False, head="average", pool_padding=1),
}
LARGE = [("resnet50", "tutorial"), ("resnet18", "torchvision"), ("resnext50_32x4d", "keras")]


@pytest.fixture(
    scope="module",
    params=[*NETWORKS, *(pytest.param(pair, marks=pytest.mark.campaign, id=pair[0]) for pair in LARGE)],
)
def layers(request):
    if request.param in NETWORKS:
        return inspect(NETWORKS[request.param], (64, 64))
    size, variant = request.param
    return inspect(fr.resnet(size, variant, num_classes=6), (64, 64))


def texts_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def patches_of(figure, kind):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, kind)]


def test_draw_graph_shows_every_layer(layers):
    figure = diagram.draw_graph(layers, "title")
    title, *texts = texts_of(figure)
    assert title == "title"
    assert [text.split()[0] for text in texts[::2]] == [info.layer.name for info in layers]
    assert [text.split(" → ")[-1] for text in texts[1::2]] == [" × ".join(map(str, info.shape)) for info in layers]
    assert len(patches_of(figure, FancyBboxPatch)) == len(layers)
    assert len(patches_of(figure, FancyArrowPatch)) == sum(len(info.layer.inputs) for info in layers)


def test_boxes_do_not_overlap(layers):
    for figure in (diagram.draw_graph(layers, "title"), diagram.overview(layers, "title")):
        boxes = [patch.get_extents() for patch in patches_of(figure, FancyBboxPatch)]
        page = figure.axes[0].bbox
        for index, box in enumerate(boxes):
            assert page.x0 < box.x0 < box.x1 < page.x1
            assert page.y0 < box.y0 < box.y1 < page.y1
            assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def layers_with_long_names():
    """Returns layers with names, kinds and shapes as long as those of resnet152 for large images."""
    layers = inspect(fr.ResNet(num_classes=1000, stage_sizes=(1,), conv_bias=False, pool_padding=1), (512, 512))
    renamed = {info.layer.name: re.sub(r"^(res|bn)2a", r"\g<1>4b35", info.layer.name) for info in layers}
    result = []
    for info in layers:
        inputs = tuple(renamed[name] for name in info.layer.inputs)
        result.append(replace(info, layer=info.layer._replace(name=renamed[info.layer.name], inputs=inputs)))
    return result


@pytest.mark.parametrize("network", ["one block", pytest.param("resnet152", marks=pytest.mark.campaign)])
def test_texts_fit_their_boxes(network):
    if network == "one block":
        layers = layers_with_long_names()
        assert "bn4b35_branch2b" in [info.layer.name for info in layers]
    else:
        layers = inspect(fr.resnet(network, "torchvision", num_classes=1000), (512, 512))
    figure = diagram.draw_graph(layers, "title")
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [patch.get_extents() for patch in patches_of(figure, FancyBboxPatch)]
    for index, text in enumerate(figure.axes[0].texts[1:]):
        box = boxes[index // 2]
        extent = text.get_window_extent(renderer)
        assert box.x0 <= extent.x0 <= extent.x1 <= box.x1, text.get_text()


def test_overview_folds_blocks():
    texts = texts_of(diagram.overview(inspect(fr.ResNet50(num_classes=6), (64, 64)), "title"))
    expected = [
        *("images", "64 × 64 × 3", "stem: 7×7 convolution, max-pooling", "15 × 15 × 64"),
        *("stage 2: convolutional block", "2a: 15 × 15 × 256", "stage 2: identity block × 2", "2b, 2c: 15 × 15 × 256"),
        *("stage 3: convolutional block", "3a: 8 × 8 × 512", "stage 3: identity block × 3", "3b … 3d: 8 × 8 × 512"),
        *("stage 4: convolutional block", "4a: 4 × 4 × 1024", "stage 4: identity block × 5", "4b … 4f: 4 × 4 × 1024"),
        *("stage 5: convolutional block", "5a: 2 × 2 × 2048", "stage 5: identity block × 2", "5b, 5c: 2 × 2 × 2048"),
        *("average pooling", "1 × 1 × 2048", "fc6: dense layer", "6 classes"),
    ]
    remaining = iter(texts)
    assert all(text in remaining for text in expected)  # in this order
    assert texts.count("1×1 conv") == texts.count("identity\nin each") == texts.count("+") / 2 == 4
    assert "Convolutional block: res2a" in texts
    assert "Identity block: res2b" in texts


def test_overview_of_one_block():
    texts = texts_of(diagram.overview(inspect(fr.ResNet(num_classes=2, stage_sizes=(1,)), (32, 32)), "title"))
    assert "Convolutional block: res2a" in texts
    assert "identity" not in " ".join(texts).lower()


@pytest.fixture
def draw(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["flaxresnet", "diagram", *map(str, arguments)])
        assert commands.main() == 0
        return capsys.readouterr().out.split()

    return run


def test_diagram_writes_reproducible_files(draw, tmp_path):
    names = ["net.png", "net.svg", "net-overview.png", "net-overview.svg"]
    assert [token for token in draw("resnet14", "--to-file", "net.svg") if token != "wrote"] == names
    before = {name: (tmp_path / name).read_bytes() for name in names}
    for name in names[::2]:
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 500
    assert b">res2a_branch2b   Conv2D 3" in before["net.svg"]
    draw("resnet14", "--to-file", "net.png")
    assert before == {name: (tmp_path / name).read_bytes() for name in names}


def test_diagram_of_run_uses_its_classes(draw, finished_run, tmp_path):
    draw(finished_run)
    assert ">fc3   Dense" in (tmp_path / "resnet.svg").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net.pdf", "--to-file net.pdf .* .png or .svg"),
        ("no/net.png", "no/net.png cannot be written: No such file or directory"),
    ],
)
def test_diagram_rejects_unwritable_file(draw, name, message):
    with pytest.raises(fr.UserError, match=message):
        draw("resnet14", "--to-file", name)
