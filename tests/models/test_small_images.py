"""Networks for small images: the stem `small`, and the CIFAR networks of He et al. 2015, section 4.2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_weights

import flaxresnet as fr
from flaxresnet.models.bn_folding import fold_batch_norm
from flaxresnet.models.layer_graph import CHANNEL_PADDING, feature_map_size, graph
from flaxresnet.models.resnet import CIFAR, SIZES, VARIANTS
from flaxresnet.visualize.diagram import overview
from flaxresnet.visualize.layer_table import inspect
from flaxresnet.weights.flat_params import flatten, shapes_of, unflatten
from flaxresnet.weights.key_maps import KEY_FORMATS
from flaxresnet.weights.weight_files import read_weights, write_weights

# Trainable parameters for the ten classes of CIFAR-10. Table 6 rounds them to 0.27, 0.46, 0.66, 0.85 and 1.7 million.
PARAMETERS = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
}
CONSTRUCTORS = {
    "resnet20": fr.ResNet20,
    "resnet32": fr.ResNet32,
    "resnet44": fr.ResNet44,
    "resnet56": fr.ResNet56,
    "resnet110": fr.ResNet110,
}
SMALL = {"num_classes": 3, "stage_sizes": (1, 1), "width": 4, "bottleneck": False, "stem": "small"}


@pytest.mark.parametrize(
    "size", ["resnet20", *(pytest.param(size, marks=pytest.mark.parity) for size in list(PARAMETERS)[1:])]
)
def test_cifar_networks_have_published_parameters(size):
    model = CONSTRUCTORS[size](num_classes=10)
    shapes = shapes_of(model, (32, 32))
    trainable = [shape for name, shape in shapes.items() if not name.endswith(("/mean", "/var"))]
    assert sum(int(np.prod(shape)) for shape in trainable) == PARAMETERS[size]
    assert model.stage_sizes == ((int(size.removeprefix("resnet")) - 2) // 6,) * 3


def test_cifar_layers_keep_naming_scheme():
    params = jax.eval_shape(fr.ResNet20(num_classes=10).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    blocks = [f"res{stage}{letter}" for stage in "234" for letter in "abc"]
    assert set(params) == {"conv1", "bn_conv1", "fc10", *blocks}
    assert set(params["res3a"]) == {"res3a_branch2a", "bn3a_branch2a", "res3a_branch2b", "bn3a_branch2b"}
    assert {name: leaf.shape for name, leaf in params["conv1"].items()} == {"kernel": (3, 3, 3, 16)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_small_stem_preserves_resolution(variant):
    model = fr.resnet("resnet14", variant, num_classes=2, width=4, stem="small", stage_sizes=(1, 1, 1))
    for side in (32, 47):
        images = jnp.zeros((1, side, side, 3))
        features, variables = jax.eval_shape(
            lambda x: model.init_with_output(jax.random.key(0), x, features=True), images
        )
        assert features["stem"].shape == (1, side, side, 4)
        assert feature_map_size(model, side) == features["stage4"].shape[1]
        assert variables["params"]["conv1"]["kernel"].shape == (3, 3, 3, 4)


def test_padded_block_pads_subsampled_input():
    block = fr.PaddedBlock(filters=(4, 7), label="3a", zero_init_residual=True)
    x = jax.random.uniform(jax.random.key(1), (2, 5, 6, 4))
    y = block.apply(block.init(jax.random.key(0), x), x)
    expected = np.zeros((2, 3, 3, 7), np.float32)
    expected[..., 1:5] = np.asarray(x)[:, ::2, ::2]
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("fields", [{}, {"shortcut": "pad", "head": "average", "conv_bias": False}])
def test_folding_preserves_small_networks(fields):
    model = fr.ResNet(**SMALL | fields)
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    variables = model.init(jax.random.key(0), images)
    rng = np.random.default_rng(0)
    flat = {}
    for name, leaf in flatten(variables).items():
        flat[name] = leaf + rng.uniform(0.1, 0.3, leaf.shape).astype(np.float32)
    variables = unflatten(flat, 3)
    folded, folded_variables = fold_batch_norm(model, variables)
    expected = model.apply(variables, images)
    np.testing.assert_allclose(folded.apply(folded_variables, images), expected, rtol=1e-4, atol=1e-4)


def test_graph_of_cifar_network():
    layers = {layer.name: layer for layer in graph(fr.ResNet20(num_classes=10), (32, 32))}
    assert not {"conv1_pad", "pool1_pad", "pool1_pool", "res2a_branch1_pad"} & set(layers)
    assert layers["conv1"].options["strides"] == [1, 1]
    assert layers["res3a_branch1_pad"].kind == CHANNEL_PADDING
    assert layers["res3a_branch1_pad"].options == {"padding": [8, 8]}
    assert layers["res4a_branch1_pad"].options == {"padding": [16, 16]}
    assert layers["res3a_add"].inputs == ("bn3a_branch2b", "res3a_branch1_pad")


def test_layer_table_of_cifar_network():
    layers = inspect(fr.ResNet20(num_classes=10), (32, 32))
    shapes = {info.layer.name: info.shape for info in layers}
    assert shapes["conv1"] == (32, 32, 16)
    assert (shapes["res3a_branch1_subsample"], shapes["res3a_branch1_pad"]) == ((16, 16, 16), (16, 16, 32))
    assert shapes["res4c_out"] == (8, 8, 64)
    assert sum(info.parameters for info in layers) == PARAMETERS["resnet20"]
    assert {info.part for info in layers} == {"stem", "stage2", "stage3", "stage4", "head"}
    # 40.55 million multiply-adds of convolutions, as a sum by hand: 3·3·(3·16 + 6·16·16)·32² + ….
    macs = 9 * (3 * 16 + 6 * 16**2) * 32**2 + 9 * (16 * 32 + 5 * 32**2) * 16**2 + 9 * (32 * 64 + 5 * 64**2) * 8**2
    assert sum(info.flops for info in layers if info.layer.kind == "Conv2D") == 2 * macs


def test_overview_names_padded_blocks():
    figure = overview(inspect(fr.ResNet(**SMALL, shortcut="pad"), (32, 32)), "small")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "stem: 3×3 convolution" in texts
    assert "stage 3: padded block" in texts
    assert "subsample, pad" in texts
    assert "Padded block: res3a" in texts


def test_weight_files_preserve_cifar_network(tmp_path):
    weights = random_weights("resnet20", "torchvision", width=4, image=32)
    write_weights(weights, tmp_path / "w.safetensors")
    restored = read_weights(tmp_path / "w.safetensors")
    assert restored.network == weights.network
    assert restored.network.stem == "small"
    np.testing.assert_equal(restored.arrays, weights.arrays)


@pytest.fixture(scope="module")
def torch():
    """Yields PyTorch, which takes seconds to import."""
    torch = pytest.importorskip("torch", reason="install torch (the `peers` extra) to compare with it")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # idle threads of PyTorch busy-wait
    yield torch
    torch.set_num_threads(threads)


def pytorch_network(torch, stage_sizes, width, shortcut):
    """Returns a network of basic blocks in PyTorch, with a 3×3 stem and shortcuts of option A ("pad") or B."""
    from torch.nn import functional
    from torch_resnet import ResNet

    class PadShortcut(torch.nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.channels = channels

        def forward(self, x):
            extra = self.channels - x.shape[1]
            return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra // 2, extra - extra // 2))

    class SmallResNet(ResNet):
        def __init__(self):
            super().__init__(stage_sizes, bottleneck=False, width=width, classes=10)
            self.conv1 = torch.nn.Conv2d(3, width, 3, 1, 1, bias=False)
            if shortcut == "pad":
                for stage in range(2, len(stage_sizes) + 1):
                    getattr(self, f"layer{stage}")[0].downsample = PadShortcut(width * 2 ** (stage - 1))

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            for stage in range(1, self.stages + 1):
                x = getattr(self, f"layer{stage}")(x)
            return self.fc(x.mean((2, 3)))

    return SmallResNet()


@pytest.mark.parity
@pytest.mark.parametrize(
    "size",
    ["resnet20", "resnet18", *(pytest.param(size, marks=pytest.mark.campaign) for size in list(PARAMETERS)[1:])],
)
def test_small_networks_agree_with_pytorch(torch, tmp_path, size):
    from safetensors.torch import save_file

    fields = SIZES[size]
    shortcut = fields.get("shortcut", "projection")
    width = fields.get("width", 8)
    torch.manual_seed(0)
    network = pytorch_network(torch, fields["stage_sizes"], width, shortcut)
    save_file(network.state_dict(), tmp_path / "torch.safetensors")
    weights = read_weights(tmp_path / "torch.safetensors")
    assert (weights.network.model, weights.network.stem, weights.network.width) == (size, "small", width)
    assert (weights.preprocessing.height, weights.preprocessing.width) == (32, 32)

    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    labels = np.array([0, 3, 9, 5])
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        expected = network.eval()(x).numpy()
    np.testing.assert_allclose(weights.model.apply(weights.variables, images), expected, atol=1e-4)

    def loss(params):
        variables = {"params": params, "batch_stats": weights.variables["batch_stats"]}
        logits, _ = weights.model.apply(variables, images, train=True, mutable=["batch_stats"])
        return -jax.nn.log_softmax(logits)[np.arange(4), labels].mean()

    gradients = flatten({"params": jax.grad(loss)(weights.variables["params"]), "batch_stats": {}})
    torch.nn.functional.cross_entropy(network.train()(x), torch.from_numpy(labels)).backward()
    key_format = KEY_FORMATS["torchvision"]
    reference = dict(network.named_parameters())
    assert len(gradients) == len(reference)
    for name, gradient in gradients.items():
        expected = key_format.import_array(reference[key_format.key(name, 10)].grad.numpy())
        np.testing.assert_allclose(gradient, expected, atol=1e-4 * max(1, np.abs(expected).max()), err_msg=name)


def test_cifar_fields_describe_table_6():
    assert CIFAR["width"] == 16
    assert set(PARAMETERS) == {size for size, fields in SIZES.items() if fields.get("shortcut") == "pad"}
