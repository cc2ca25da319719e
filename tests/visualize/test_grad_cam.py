"""Tests Grad-CAM against formulas by hand, its pictures, and the command `flaxresnet explain`."""

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
    """Returns a network, variables that all differ from their initial values, and two images."""
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
    """Returns by head: a network, its variables, images, and a compiled function from two classes to its results.

    The results are the features, and logits and maps of the last stage; for the average head also of the one before.
    """
    result = {}
    for head in HEADS:
        model, variables, images = network(small_init, 32, head=head, bottleneck=head == "average")

        @jax.jit
        def explain(classes, model=model, variables=variables, images=images):
            stages = (3, 2) if model.head == "average" else (3,)
            features = model.apply(variables, images, features=True)
            return features, *(grad_cam(model, variables, images, stage, classes) for stage in stages)

        result[head] = model, variables, images, explain
    return result


@pytest.mark.parametrize("head", HEADS)
def test_last_stage_uses_dense_weights(networks, head):
    """After average pooling, a channel's weight in the map is its dense weight divided by the number of positions."""
    _, variables, _, explain = networks[head]
    classes = np.array([2, 0])
    outputs, (logits, maps), *_ = explain(classes)
    features = np.asarray(outputs["stage3"], np.float64)
    kernel = np.asarray(variables["params"]["fc3"]["kernel"])
    assert features.shape[1:3] == (4, 4)
    np.testing.assert_allclose(logits, outputs["logits"], rtol=1e-5)
    # The tutorials' head averages windows of 2×2 and has weights for each of the four windows.
    by_window = kernel.reshape(2, 2, -1, 3).sum((0, 1)) if head == "flatten" else kernel
    for image, label in enumerate(classes):
        expected = np.maximum(features[image] @ (by_window[:, label] / 16), 0)
        np.testing.assert_allclose(maps[image], expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_earlier_stage_uses_gradient_through_blocks(networks):
    _, variables, _, explain = networks["average"]
    outputs, _, (_, maps) = explain(np.array([1, 1]))
    features = outputs["stage2"]
    block = fr.ConvolutionalBlock((8, 8, 32), strides=2, label="3a")
    block_variables = {kind: variables[kind]["res3a"] for kind in ("params", "batch_stats")}

    @jax.jit
    @jax.grad
    def gradient(features):
        x = block.apply(block_variables, features).mean((1, 2)) @ variables["params"]["fc3"]["kernel"]
        return x[:, 1].sum()

    weights = np.asarray(gradient(features)).mean((1, 2))
    expected = np.maximum(np.einsum("nhwc,nc->nhw", features, weights), 0)
    np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert expected.max() > 0


class Flat(nn.Module):
    """A network of one stage and a dense layer. It is small enough to run op by op, which rounds all maps alike."""

    stage_sizes: tuple[int, ...] = (1,)

    @nn.compact
    def __call__(self, images, features=False):
        stage = nn.Dense(4, name="res2a")(images)
        return {"stage2": stage, "logits": nn.Dense(3)(nn.relu(stage).mean((1, 2)))}


def test_default_class_is_most_probable():
    model = Flat()
    images = np.random.default_rng(0).random((4, 4, 4, 3), np.float32)
    variables = model.init(jax.random.key(0), images)
    logits, maps = grad_cam(model, variables, images, 2)
    by_class = [np.asarray(grad_cam(model, variables, images, 2, np.full(4, label))[1]) for label in range(3)]
    best = np.asarray(logits).argmax(1)
    for image, label in enumerate(best):
        np.testing.assert_array_equal(maps[image], by_class[label][image])
    assert np.any(maps != by_class[0]) or np.any(maps != by_class[1])


def test_grad_cam_rejects_missing_stage(networks):
    model, variables, images, _ = networks["average"]
    with pytest.raises(ValueError, match="stage is 4; this network has the stages 2 to 3"):
        grad_cam(model, variables, images, 4)


@pytest.mark.parametrize(("size", "stage"), [(32, 3), (64, 4), (224, 5)])
def test_default_stage_has_4x4_map(size, stage):
    model = fr.ResNet(num_classes=2, stage_sizes=(1, 1, 1, 1), width=4, bottleneck=False, head="average")
    assert default_stage(model, (size, size)) == stage


def test_overlay_without_heat_is_photo():
    photo = blobs(1, seed=0, size=64).images[0]
    np.testing.assert_array_equal(overlay(photo, np.zeros((4, 4), np.float32)), photo)
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 7
    changed = np.abs(overlay(photo, heat).astype(int) - photo).sum(-1)
    assert changed[:16, 48:].mean() > 50
    assert max(changed[32:].max(), changed[:, :16].max()) <= 2  # bicubic resizing overshoots a little


@pytest.fixture
def explain(monkeypatch, capsys, tmp_path):
    (tmp_path / "here" / "photos" / "more").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for name, index in (("red.png", 0), ("more/red.png", 3), ("more/green.png", 1)):
        Image.fromarray(blobs(4, seed=8, size=48).images[index]).save(f"photos/{name}")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["flaxresnet", "explain", *map(str, arguments)])
        status = commands.main()
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def test_explain_folder_reports_unreadable_photo(explain, finished_run, tmp_path):
    (tmp_path / "here" / "photos" / "junk.jpg").write_text("not an image")
    status, out, err = explain(finished_run, "photos", "--top-k", 2)
    assert status == 1
    assert "photos/junk.jpg cannot be read" in err
    answer = fr.Classifier.load(finished_run).predict("photos/red.png")
    (row,) = (line.split() for line in out.splitlines() if line.startswith("photos/red.png"))
    assert row == ["photos/red.png", answer.label, f"{answer.probability:.4f}", "explanations/red-2.explained.png"]
    assert re.findall(r"explanations/\S+png", out) == [
        f"explanations/{name}.explained.png" for name in ("green", "red", "red-2")
    ]
    for name in ("green", "red", "red-2"):
        with Image.open(f"explanations/{name}.explained.png") as image:
            assert image.size[0] == 880


def test_explain_uses_given_class(explain, finished_run):
    assert explain(finished_run, "photos/*.png", "--class-name", "blue", "--to-folder", "blue")[0] == 0
    assert explain(finished_run, "photos/red.png", "--to-folder", "best", "--stage", 2)[0] == 0
    with Image.open("blue/red.explained.png") as blue, Image.open("best/red.explained.png") as best:
        assert np.any(np.asarray(blue) != np.asarray(best))


def test_explain_preserves_photos_in_its_folder(explain, finished_run):
    shutil.rmtree("photos/more")
    before = Path("photos/red.png").read_bytes()
    for _ in range(2):
        _, out, _ = explain(finished_run, "photos", "--to-folder", "photos")
        assert out.count(".explained.png") == 1
    assert Path("photos/red.png").read_bytes() == before
    assert Path("photos/red.explained.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no photo given"),
        (["photos", "--top-k", 0], "--top-k must be at least 1, not 0"),
        (["photos", "--class-name", "pink"], "--class-name 'pink' is not a class of the run"),
        (["photos", "--stage", 4], "--stage 4 is not in this network; its last is 2"),
        (["photos", "--to-folder", "file/in/the/way"], "cannot be written: Not a directory"),
    ],
)
def test_explain_rejects_wrong_arguments(explain, finished_run, tmp_path, arguments, message):
    (tmp_path / "here" / "file").write_text("")
    with pytest.raises(fr.UserError) as caught:
        explain(finished_run, *arguments)
    assert message in str(caught.value)
