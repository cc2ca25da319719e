"""Grad-CAM against formulas by hand, the pictures of it, and the command that makes them."""

import re
import shutil
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from conftest import blobs
from PIL import Image

import flaxresnet as fr
from flaxresnet.cli import main as commands
from flaxresnet.visualize.grad_cam import default_stage, grad_cam
from flaxresnet.visualize.heatmap import overlay


def network(small_init, size, **fields):
    """A network with every variable away from its start, and two images for it."""
    model = fr.ResNet(**({"num_classes": 3, "stage_sizes": (1, 1), "width": 4} | fields))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: np.asarray(leaf) + rng.uniform(0, 0.3, leaf.shape).astype(np.float32),
        small_init(model, size=size),
    )
    return model, variables, rng.random((2, size, size, 3), np.float32)


HEADS = ("average", "flatten")


@pytest.fixture(scope="module")
def networks(small_init):
    """By head: the network, its variables, images, and a program that gives what it sees in them and maps of it.

    The program takes two classes; maps are of the last stage and, of the average's network, of the one before.
    """
    found = {}
    for head in HEADS:
        model, variables, images = network(small_init, 32, head=head, bottleneck=head == "average")

        @jax.jit
        def look(classes, model=model, variables=variables, images=images):
            stages = (3, 2) if model.head == "average" else (3,)
            seen = model.apply(variables, images, features=True)
            return seen, *(grad_cam(model, variables, images, stage, classes) for stage in stages)

        found[head] = model, variables, images, look
    return found


@pytest.mark.parametrize("head", HEADS)
def test_at_the_last_stage_the_weights_are_those_of_the_dense_layer(networks, head):
    """Over an average of places a logit rises with each by its share of W; a channel's weight is the mean of these."""
    _, variables, _, look = networks[head]
    classes = np.array([2, 0])
    seen, (logits, maps), *_ = look(classes)
    features, kernel = np.asarray(seen["stage3"], np.float64), np.asarray(variables["params"]["fc3"]["kernel"])
    assert features.shape[1:3] == (4, 4)
    np.testing.assert_allclose(logits, seen["logits"], rtol=1e-5)
    # The tutorials' head averages windows of 2×2, and has weights for each of the four.
    by_window = kernel.reshape(2, 2, -1, 3).sum((0, 1)) if head == "flatten" else kernel
    for image, label in enumerate(classes):
        expected = np.maximum(features[image] @ (by_window[:, label] / 16), 0)
        np.testing.assert_allclose(maps[image], expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_at_an_earlier_stage_the_slope_goes_through_the_blocks_after_it(networks):
    _, variables, _, look = networks["average"]
    seen, _, (_, maps) = look(np.array([1, 1]))
    features = seen["stage2"]
    block = fr.ConvolutionalBlock((8, 8, 32), strides=2, label="3a")
    inside = {kind: variables[kind]["res3a"] for kind in ("params", "batch_stats")}

    @jax.jit
    @jax.grad
    def slope(features):
        x = block.apply(inside, features).mean((1, 2)) @ variables["params"]["fc3"]["kernel"]
        return x[:, 1].sum()

    weights = np.asarray(slope(features)).mean((1, 2))
    expected = np.maximum(np.einsum("nhwc,nc->nhw", features, weights), 0)
    np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert expected.max() > 0


class Flat(nn.Module):
    """A network of one stage and a dense layer, small enough to be computed op by op, which rounds all maps alike."""

    stage_sizes: tuple[int, ...] = (1,)

    @nn.compact
    def __call__(self, images, features=False):
        seen = nn.Dense(4, name="res2a")(images)
        return {"stage2": seen, "logits": nn.Dense(3)(nn.relu(seen).mean((1, 2)))}


def test_without_a_class_it_is_the_most_probable_one():
    model, images = Flat(), np.random.default_rng(0).random((4, 4, 4, 3), np.float32)
    variables = model.init(jax.random.key(0), images)
    logits, maps = grad_cam(model, variables, images, 2)
    found = []
    for label in range(3):
        found.append(np.asarray(grad_cam(model, variables, images, 2, np.full(4, label))[1]))
    best = np.asarray(logits).argmax(1)
    for image, label in enumerate(best):
        np.testing.assert_array_equal(maps[image], found[label][image])
    assert np.any(maps != found[0]) or np.any(maps != found[1])


def test_a_stage_that_is_not_there_is_refused(networks):
    model, variables, images, _ = networks["average"]
    with pytest.raises(ValueError, match=r"stage is 4; this network's are 2 to 3"):
        grad_cam(model, variables, images, 4)


@pytest.mark.parametrize(("size", "stage"), [(32, 3), (64, 4), (224, 5)])
def test_the_usual_stage_has_four_places_a_side(size, stage):
    model = fr.ResNet(num_classes=2, stage_sizes=(1, 1, 1, 1), width=4, bottleneck=False, head="average")
    assert default_stage(model, (size, size)) == stage


def test_an_overlay_is_the_photo_where_nothing_was_looked_at():
    photo = blobs(1, seed=0, size=64).images[0]
    np.testing.assert_array_equal(overlay(photo, np.zeros((4, 4), np.float32)), photo)
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 7
    changed = np.abs(overlay(photo, heat).astype(int) - photo).sum(-1)
    assert changed[:16, 48:].mean() > 50
    assert max(changed[32:].max(), changed[:, :16].max()) <= 2  # bicubic stretching swings a little


@pytest.fixture
def explain(monkeypatch, capsys, tmp_path):
    (tmp_path / "here" / "photos" / "more").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for name, index in (("red.png", 0), ("more/red.png", 3), ("more/green.png", 1)):
        Image.fromarray(blobs(4, seed=8, size=48).images[index]).save(f"photos/{name}")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["flaxresnet", "explain", *map(str, words)])
        status = commands.main()
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_a_folder_of_photos_is_explained_and_the_unreadable_named(explain, finished_run, tmp_path):
    (tmp_path / "here" / "photos" / "junk.jpg").write_text("no picture")
    status, out, err = explain(finished_run, "photos", "--top-k", 2)
    assert status == 1
    assert "photos/junk.jpg cannot be read" in err
    answer = fr.Classifier.load(finished_run).predict("photos/red.png")
    assert f"photos/red.png  {answer.label}  {answer.probability:.4f}  explanations/red-2.explained.png\n" in out
    assert re.findall(r"explanations/\S+", out) == [
        f"explanations/{name}.explained.png" for name in ("green", "red", "red-2")
    ]
    for name in ("green", "red", "red-2"):
        with Image.open(f"explanations/{name}.explained.png") as picture:
            assert picture.size[0] == 880


def test_one_class_can_be_asked_for(explain, finished_run):
    assert explain(finished_run, "photos/*.png", "--class-name", "blue", "--to-folder", "blue")[0] == 0
    assert explain(finished_run, "photos/red.png", "--to-folder", "best", "--stage", 2)[0] == 0
    with Image.open("blue/red.explained.png") as asked, Image.open("best/red.explained.png") as best:
        assert np.any(np.asarray(asked) != np.asarray(best))


def test_photos_are_neither_replaced_nor_joined_by_explanations(explain, finished_run):
    shutil.rmtree("photos/more")
    before = Path("photos/red.png").read_bytes()
    for _ in range(2):
        _, out, _ = explain(finished_run, "photos", "--to-folder", "photos")
        assert len(out.splitlines()) == 1
    assert Path("photos/red.png").read_bytes() == before
    assert Path("photos/red.explained.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no photo given; name one or more pictures after the run's folder"),
        (["photos", "--top-k", 0], "--top-k must be at least 1, not 0"),
        (["photos", "--class-name", "pink"], "--class-name 'pink' is none of the run's classes: red, green, blue"),
        (["photos", "--stage", 4], "--stage 4 is not in this network; its last is 2"),
        (["photos", "--to-folder", "file/in/the/way"], "cannot be written: Not a directory"),
    ],
)
def test_a_mistake_is_a_sentence(explain, finished_run, tmp_path, words, message):
    (tmp_path / "here" / "file").write_text("")
    with pytest.raises(fr.UserError) as caught:
        explain(finished_run, *words)
    assert message in str(caught.value)
