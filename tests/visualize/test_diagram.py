"""Pictures of networks: every layer is in them, nothing lies over anything else, and files are as asked for."""

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


def words_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def patches_of(figure, kind):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, kind)]


def test_the_whole_graph_has_a_box_a_layer_and_an_arrow_a_connection(layers):
    figure = diagram.draw_graph(layers, "title")
    words = words_of(figure)
    assert words[0] == "title"
    assert [text.split()[0] for text in words[1::2]] == [one.layer.name for one in layers]
    assert [re.split(" → ", text)[-1] for text in words[2::2]] == [" × ".join(map(str, one.shape)) for one in layers]
    assert len(patches_of(figure, FancyBboxPatch)) == len(layers)
    assert len(patches_of(figure, FancyArrowPatch)) == sum(len(one.layer.inputs) for one in layers)


def test_no_box_lies_over_another_and_all_are_on_the_page(layers):
    for figure in (diagram.draw_graph(layers, "title"), diagram.overview(layers, "title")):
        boxes = [patch.get_extents() for patch in patches_of(figure, FancyBboxPatch)]
        page = figure.axes[0].bbox
        for index, box in enumerate(boxes):
            assert page.x0 < box.x0 < box.x1 < page.x1
            assert page.y0 < box.y0 < box.y1 < page.y1
            assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def longest_words():
    """Layers with names, kinds and shapes as long as those of resnet152 for large images."""
    layers = inspect(fr.ResNet(num_classes=1000, stage_sizes=(1,), conv_bias=False, pool_padding=1), (512, 512))
    longer = {one.layer.name: re.sub(r"^(res|bn)2a", r"\g<1>4b35", one.layer.name) for one in layers}
    for one in layers:
        inputs = tuple(longer[name] for name in one.layer.inputs)
        yield replace(one, layer=one.layer._replace(name=longer[one.layer.name], inputs=inputs))


@pytest.mark.parametrize("network", ["one block", pytest.param("resnet152", marks=pytest.mark.campaign)])
def test_words_stay_in_their_boxes(network):
    if network == "one block":
        layers = [*longest_words()]
        assert "bn4b35_branch2b" in [one.layer.name for one in layers]
    else:
        layers = inspect(fr.resnet(network, "torchvision", num_classes=1000), (512, 512))
    figure = diagram.draw_graph(layers, "title")
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [patch.get_extents() for patch in patches_of(figure, FancyBboxPatch)]
    for index, text in enumerate(figure.axes[0].texts[1:]):
        box, extent = boxes[index // 2], text.get_window_extent(renderer)
        assert box.x0 <= extent.x0 <= extent.x1 <= box.x1, text.get_text()


def test_the_overview_folds_blocks_and_shows_one_of_each_kind():
    words = words_of(diagram.overview(inspect(fr.ResNet50(num_classes=6), (64, 64)), "title"))
    expected = [
        *("images", "64 × 64 × 3", "stem: 7×7 convolution, max-pooling", "15 × 15 × 64"),
        *("stage 2: convolutional block", "2a: 15 × 15 × 256", "stage 2: identity block × 2", "2b, 2c: 15 × 15 × 256"),
        *("stage 3: convolutional block", "3a: 8 × 8 × 512", "stage 3: identity block × 3", "3b … 3d: 8 × 8 × 512"),
        *("stage 4: convolutional block", "4a: 4 × 4 × 1024", "stage 4: identity block × 5", "4b … 4f: 4 × 4 × 1024"),
        *("stage 5: convolutional block", "5a: 2 × 2 × 2048", "stage 5: identity block × 2", "5b, 5c: 2 × 2 × 2048"),
        *("average pooling", "1 × 1 × 2048", "fc6: dense layer", "6 classes"),
    ]
    found = iter(words)
    assert all(word in found for word in expected)
    assert words.count("1×1 conv") == words.count("unchanged\nin each") == words.count("+") / 2 == 4
    assert "A convolutional block: res2a" in words
    assert "An identity block: res2b" in words


def test_a_network_of_one_block_can_be_drawn():
    words = words_of(diagram.overview(inspect(fr.ResNet(num_classes=2, stage_sizes=(1,)), (32, 32)), "title"))
    assert "A convolutional block: res2a" in words
    assert not any("identity" in word for word in words)


@pytest.fixture
def draw(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["flaxresnet", "diagram", *map(str, words)])
        assert commands.main() == 0
        return capsys.readouterr().out.split()

    return run


def test_four_files_are_written_the_same_each_time(draw, tmp_path):
    names = ["net.png", "net.svg", "net-overview.png", "net-overview.svg"]
    assert draw("resnet14", "--to-file", "net.svg") == names
    before = {name: (tmp_path / name).read_bytes() for name in names}
    for name in names[::2]:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 500
    assert b">res2a_branch2b   Conv2D 3" in before["net.svg"]
    draw("resnet14", "--to-file", "net.png")
    assert before == {name: (tmp_path / name).read_bytes() for name in names}


def test_a_run_is_drawn_as_it_was_trained(draw, finished_run, tmp_path):
    draw(finished_run)
    assert ">fc3   Dense" in (tmp_path / "resnet.svg").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net.pdf", "--to-file net.pdf does not say what to draw; let its name end in .png or .svg"),
        ("no/net.png", "no/net.png cannot be written: No such file or directory"),
    ],
)
def test_where_nothing_can_be_written_it_says_so(draw, name, message):
    with pytest.raises(fr.UserError) as caught:
        draw("resnet14", "--to-file", name)
    assert str(caught.value) == message
