"""Tests of the blocks: the tutorials' printed outputs, layer names, shapes and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from starts import initial_variables

import flaxresnet as fr

# TensorFlow's default graph seed. It is the generator's key if only an operation seed is given.
TENSORFLOW_GRAPH_SEED = 87654321


def philox(counters: np.ndarray, key: int) -> np.ndarray:
    """Returns Philox 4×32-10 (Salmon et al. 2011): (n,) counters, first word only → (n, 4) uint32."""
    state = np.zeros((len(counters), 4), np.uint64)
    state[:, 0] = counters
    keys = np.array([key & 0xFFFFFFFF, key >> 32], np.uint64)
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    for _ in range(10):
        first = state[:, 0] * np.uint64(0xD2511F53)
        second = state[:, 2] * np.uint64(0xCD9E8D57)
        state = np.stack(
            [
                (second >> shift) ^ state[:, 1] ^ keys[0],
                second & low,
                (first >> shift) ^ state[:, 3] ^ keys[1],
                first & low,
            ],
            axis=1,
        )
        keys = (keys + np.array([0x9E3779B9, 0xBB67AE85], np.uint64)) & low
    return state.astype(np.uint32)


def tensorflow_glorot_uniform(shape: tuple[int, ...]) -> np.ndarray:
    """Returns TensorFlow's `glorot_uniform(seed=0)` for a convolution kernel (height, width, in, out)."""
    size = int(np.prod(shape))
    area = shape[0] * shape[1]
    bits = philox(np.arange(-(-size // 4)), TENSORFLOW_GRAPH_SEED).ravel()[:size]
    uniform = ((bits & 0x7FFFFF) | 0x3F800000).astype(np.uint32).view(np.float32) - np.float32(1)
    limit = np.sqrt(6 / (area * (shape[2] + shape[3])))
    return (uniform * 2 * limit - limit).reshape(shape).astype(np.float32)


def shapes_of(block, x):
    return jax.eval_shape(block.init, jax.random.key(0), x)


def with_tensorflow_kernels(variables):
    def fill(path, leaf):
        return tensorflow_glorot_uniform(leaf.shape) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(fill, variables)


@pytest.mark.parametrize(
    ("block", "expected", "shape"),
    [
        (
            fr.IdentityBlock(filters=(2, 4, 6), kernel_size=2),
            [0.94822997, 0.0, 1.1610144, 2.747859, 0.0, 1.36677],
            (3, 4, 4, 6),
        ),
        (
            fr.ConvolutionalBlock(filters=(2, 4, 6), kernel_size=2),
            [0.09018463, 1.2348979, 0.46822023, 0.03671762, 0.0, 0.65516603],
            (3, 2, 2, 6),
        ),
    ],
    ids=["identity", "convolutional"],
)
def test_block_reproduces_tutorial_output(block, expected, shape):
    x = np.random.RandomState(1).randn(3, 4, 4, 6).astype(np.float32)
    variables = with_tensorflow_kernels(initial_variables(block, x))
    out = jax.jit(block.apply)(variables, x)
    assert out.shape == shape
    np.testing.assert_allclose(out[1, 1, 0], expected, atol=1e-6)


def test_block_layers_have_tutorial_names():
    x = jnp.zeros((1, 8, 8, 16))
    block = fr.ConvolutionalBlock(filters=(4, 4, 16), label="3a")
    names = set(shapes_of(block, x)["params"])
    assert names == {f"{kind}3a_branch{branch}" for kind in ("res", "bn") for branch in ("2a", "2b", "2c", "1")}
    names = set(shapes_of(fr.IdentityBlock(filters=(4, 4, 16), label="3b"), x)["params"])
    assert names == {f"{kind}3b_branch{branch}" for kind in ("res", "bn") for branch in ("2a", "2b", "2c")}


@pytest.mark.parametrize(("strides", "side"), [(1, 7), (2, 4), (3, 3)])
def test_convolutional_block_output_shape(strides, side):
    x = jnp.ones((2, 7, 7, 4))
    block = fr.ConvolutionalBlock(filters=(2, 2, 8), strides=strides)
    out, _ = jax.eval_shape(block.init_with_output, jax.random.key(0), x)
    assert out.shape == (2, side, side, 8)


def test_block_updates_running_statistics():
    x = np.random.default_rng(1).normal(size=(8, 6, 6, 4)).astype(np.float32) * 3 + 1
    block = fr.IdentityBlock(filters=(4, 4, 4))
    variables = initial_variables(block, x)
    _, updated = jax.jit(lambda v, x: block.apply(v, x, train=True, mutable=["batch_stats"]))(variables, x)
    first = variables["params"]["res_branch2a"]
    y = np.asarray(x, np.float64) @ np.asarray(first["kernel"][0, 0], np.float64) + np.asarray(first["bias"])
    got = updated["batch_stats"]["bn_branch2a"]
    np.testing.assert_allclose(got["mean"], 0.01 * y.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got["var"], 0.99 + 0.01 * y.var(axis=(0, 1, 2)), rtol=1e-4)


def test_identity_block_rejects_channel_mismatch():
    with pytest.raises(ValueError, match=r"3 channels must equal filters\[-1\] = 8"):
        fr.IdentityBlock(filters=(2, 2, 8)).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))


def test_basic_block_matches_numpy():
    x = np.random.default_rng(1).normal(size=(2, 5, 5, 4)).astype(np.float32)
    block = fr.IdentityBlock(filters=(4, 4), label="2a")
    variables = initial_variables(block, x)
    assert set(variables["params"]) == {"res2a_branch2a", "bn2a_branch2a", "res2a_branch2b", "bn2a_branch2b"}
    y = np.asarray(x, np.float64)
    for branch in "ab":  # initial batch norm only divides by √(1 + ε)
        kernel = variables["params"][f"res2a_branch2{branch}"]["kernel"]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2))
        y = np.einsum("nhwcij,ijcf->nhwf", windows, kernel) / np.sqrt(1 + 1e-3)
        y = np.maximum(y, 0) if branch == "a" else y
    np.testing.assert_allclose(jax.jit(block.apply)(variables, x), np.maximum(x + y, 0), atol=1e-5)


@pytest.mark.parametrize(("strided", "shapes"), [(0, (4, 4, 4)), (1, (8, 4, 4))])
def test_bottleneck_strided_convolution(strided, shapes):
    x = jnp.zeros((1, 8, 8, 4))
    block = fr.ConvolutionalBlock(filters=(2, 2, 8), strides=2, strided=strided)

    def apply(variables, x):
        return block.apply(variables, x, capture_intermediates=lambda m, _: (m.name or "").startswith("res"))

    _, state = jax.eval_shape(apply, shapes_of(block, x), x)
    sides = tuple(state["intermediates"][f"res_branch2{branch}"]["__call__"][0].shape[1] for branch in "abc")
    assert sides == shapes


def test_bottleneck_groups_kernel_shapes():
    variables = shapes_of(fr.IdentityBlock(filters=(8, 8, 4), groups=4), jnp.zeros((1, 4, 4, 4)))
    shapes = {name: layer["kernel"].shape for name, layer in variables["params"].items() if "kernel" in layer}
    assert shapes == {"res_branch2a": (1, 1, 4, 8), "res_branch2b": (3, 3, 2, 8), "res_branch2c": (1, 1, 8, 4)}


def test_block_rejects_four_filters():
    with pytest.raises(ValueError, match=r"filters is \(2, 2, 2, 4\); give two filters for a basic block or three"):
        fr.ConvolutionalBlock(filters=(2, 2, 2, 4)).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
