"""Fine-tuning: starts a run from pretrained weights (`--init`), with frozen stages (`--freeze`)."""

from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any

import jax

from flaxresnet.config.recipes import Network
from flaxresnet.config.train_config import STAGES, TrainConfig
from flaxresnet.config.validation import flag
from flaxresnet.models.resnet import stage_of
from flaxresnet.runs.checkpoint_files import checkpoint_paths
from flaxresnet.runs.metadata import RunMetadata
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError, listed
from flaxresnet.training.train_state import TrainState, copy_tree
from flaxresnet.weights import flat_params
from flaxresnet.weights.flat_params import HEAD_KEY
from flaxresnet.weights.pretrained_weights import PretrainedWeights, require_same_shapes


def resumable_run(config: TrainConfig) -> RunMetadata | None:
    """Returns the run that `config` resumes if it started from the same `--init` and has a checkpoint, else None.

    Such a run does not read the file of `--init` again.
    """
    folder = RunDir(config.workdir)
    if not (config.init and config.resume and folder.exists()):
        return None
    if not (
        checkpoint_paths(folder.checkpoints) or checkpoint_paths(folder.mid_epoch)
    ):  # there may be rows without a checkpoint
        return None
    metadata = folder.read_metadata()
    return metadata if metadata.config.init == config.init else None


def merge_pretrained_config(config: TrainConfig, network: Network, assumed: Collection[str] = ()) -> TrainConfig:
    """Returns the configuration with the network of the weights.

    Args:
      config: the options that the user gave.
      network: the network of the weights.
      assumed: fields of `network` that the file does not store; the user's options override them.

    Raises:
      UserError: an option asks for another network.
    """
    fields = asdict(network)
    for name, value in fields.items():
        requested = getattr(config, name)
        if requested in (value, None):
            continue
        if name not in assumed:
            raise UserError(f"--init {config.init} has {flag(name)} {value}, not {requested}; leave {flag(name)} out")
        fields[name] = requested
    return replace(config, **fields)


def load_pretrained(
    state: TrainState, weights: PretrainedWeights, class_names: tuple[str, ...]
) -> tuple[TrainState, bool]:
    """Returns the state with pretrained weights, and whether these include the last layer.

    The last layer is included if its shape matches and the weights name the same classes, in any order, or name none.
    Otherwise it keeps its random initialization.

    Args:
      state: the state before the first step.
      weights: the pretrained weights.
      class_names: the class names of the training data, in the order of their labels.

    Raises:
      UserError: names or shapes differ from the network's. This cannot happen after `merge_pretrained_config`.
    """
    initial = flat_params.flatten({"params": state.params, "batch_stats": state.batch_stats})
    with_head = _head_fits(weights, initial, class_names)
    table = {name: array for name, array in weights.arrays.items() if not _is_head(name)}
    if with_head:
        order = [(weights.class_names or class_names).index(name) for name in class_names]
        table |= {name: array[..., order] for name, array in weights.arrays.items() if _is_head(name)}
    expected = {name: leaf.shape for name, leaf in initial.items() if with_head or not _is_head(name)}
    shapes = {name: array.shape for name, array in table.items()}
    require_same_shapes(expected, shapes, "the weights do not fit the network")

    merged = dict(initial)
    for name, array in table.items():
        merged[name] = jax.device_put(array, initial[name].sharding)
    variables = flat_params.unflatten(merged, len(class_names))
    ema_params = copy_tree({layer: variables["params"][layer] for layer in state.ema_params})
    return state.replace(**variables, ema_params=ema_params), with_head


def _is_head(name: str) -> bool:
    return name.startswith(HEAD_KEY + "/")


def _head_fits(weights: PretrainedWeights, initial: dict[str, Any], class_names: tuple[str, ...]) -> bool:
    name = f"{HEAD_KEY}/kernel"
    same_shape = name in weights.arrays and weights.arrays[name].shape == initial[name].shape
    return same_shape and (weights.class_names is None or set(weights.class_names) == set(class_names))


def describe_start(
    config: TrainConfig, weights: PretrainedWeights, with_head: bool, class_names: tuple[str, ...]
) -> str:
    """Returns the line that reports the pretrained weights and whether they include the last layer."""
    network = f"{weights.network.model}, {weights.network.variant}"
    head = "with the last layer" if with_head else _describe_new_head(weights, class_names)
    text = f"starting from {config.init}: {network}; {head}"
    if "preprocessing" in weights.assumed:
        text += f"; the file has no preprocessing metadata, so the defaults of {weights.network.variant} apply"
    return text


def _describe_new_head(weights: PretrainedWeights, class_names: tuple[str, ...]) -> str:
    if weights.num_classes == len(class_names):
        reason = "other class names or another image size"
    elif weights.num_classes is None:
        reason = "the weights have none"
    else:
        reason = f"the weights have {weights.num_classes} classes, the data {len(class_names)}"
    text = f"the last layer starts from random weights ({reason})"
    if weights.class_names and set(class_names) < set(weights.class_names):  # possibly left out by mistake
        missing = [name for name in weights.class_names if name not in class_names]
        text += f"; the network forgets {listed(missing)} unless the data have images of them too"
    return text


def describe_frozen(params: Any, frozen: tuple[str, ...]) -> str:
    """Returns the line that reports how many parameters are frozen and trainable, by stage."""
    counts: dict[str, int] = {}
    for layer, tree in params.items():
        stage = stage_of(layer)
        counts[stage] = counts.get(stage, 0) + sum(leaf.size for leaf in jax.tree.leaves(tree))
    stages = [stage for stage in (*STAGES, "head") if stage in counts]

    def describe(selected: list[str]) -> str:
        return f"{', '.join(selected)} ({sum(counts[stage] for stage in selected):,} parameters)"

    frozen_text = describe([stage for stage in stages if stage in frozen])
    trainable_text = describe([stage for stage in stages if stage not in frozen])
    return f"frozen: {frozen_text}; trainable: {trainable_text}"
