"""Starting from weights that have learned elsewhere: `--init` and `--freeze`."""

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
    """The run that `config` goes on with, where it began with the same weights and has a checkpoint."""
    folder = RunDir(config.workdir)
    if not (config.init and config.resume and folder.exists()):
        return None
    if not (checkpoint_paths(folder.checkpoints) or checkpoint_paths(folder.mid_epoch)):
        return None
    info = folder.read_metadata()
    return info if info.config.init == config.init else None


def merge_pretrained_config(config: TrainConfig, network: Network, assumed: Collection[str] = ()) -> TrainConfig:
    """The configuration with the network of the weights; raises UserError where it asks for another one.

    Fields that are only assumed of the network give way to what the configuration asks for.
    """
    theirs = asdict(network)
    for name, value in theirs.items():
        if (asked := getattr(config, name)) in (value, None):
            continue
        if name in assumed:
            theirs[name] = asked
        else:
            raise UserError(f"--init {config.init} has {flag(name)} {value}, not {asked}; leave {flag(name)} out")
    return replace(config, **theirs)


def load_pretrained(
    state: TrainState, weights: PretrainedWeights, class_names: tuple[str, ...]
) -> tuple[TrainState, bool]:
    """The first state with the weights laid into it, and whether their last layer is among them.

    The last layer is taken where it is for these classes, in whatever order, and images of this size; elsewhere it
    starts anew.

    Raises:
      UserError: the weights do not fit; not to be expected after `merge_pretrained_config`.
    """
    held = flat_params.flatten({"params": state.params, "batch_stats": state.batch_stats})
    with_head = _head_fits(weights, held, class_names)
    table = {name: array for name, array in weights.arrays.items() if not _of_head(name)}
    if with_head:
        order = [(weights.class_names or class_names).index(name) for name in class_names]
        table |= {name: array[..., order] for name, array in weights.arrays.items() if _of_head(name)}
    expected = {name: leaf.shape for name, leaf in held.items() if with_head or not _of_head(name)}
    require_same_shapes(
        expected, {name: array.shape for name, array in table.items()}, "the weights do not fit the network"
    )
    laid = {name: jax.device_put(table[name], leaf.sharding) if name in table else leaf for name, leaf in held.items()}
    variables = flat_params.unflatten(laid, len(class_names))
    ema_params = copy_tree({layer: variables["params"][layer] for layer in state.ema_params})
    return state.replace(**variables, ema_params=ema_params), with_head


def _of_head(name: str) -> bool:
    return name.startswith(HEAD_KEY + "/")


def _head_fits(weights: PretrainedWeights, held: dict[str, Any], class_names: tuple[str, ...]) -> bool:
    name = f"{HEAD_KEY}/kernel"
    same_shape = name in weights.arrays and weights.arrays[name].shape == held[name].shape
    return same_shape and (weights.class_names is None or set(weights.class_names) == set(class_names))


def describe_start(
    config: TrainConfig, weights: PretrainedWeights, with_head: bool, class_names: tuple[str, ...]
) -> str:
    """What the run starts from, as a line for people."""
    head = "its last layer too"
    if not with_head:
        there = "none" if weights.num_classes is None else f"{weights.num_classes} classes"
        same = weights.num_classes == len(class_names)
        why = "other names or another size of images" if same else f"{there} there, {len(class_names)} here"
        head = f"the last layer starts anew ({why})"
        if weights.class_names and set(class_names) < set(weights.class_names):  # some of its own, left out by chance
            lost = [name for name in weights.class_names if name not in class_names]
            head += f"; it will not know {listed(lost)} any more, unless the data have pictures of them too"
    scaling = "; it does not tell how its pixels were scaled: as those of its kind are, it is assumed"
    told = "" if "preprocessing" not in weights.assumed else scaling
    return f"starting from {config.init}: {weights.network.model}, {weights.network.variant}; {head}{told}"


def describe_frozen(params: Any, frozen: tuple[str, ...]) -> str:
    """How many parameters of which parts stay and learn, as a line for people."""
    counts: dict[str, int] = {}
    for layer, tree in params.items():
        counts[stage_of(layer)] = counts.get(stage_of(layer), 0) + sum(leaf.size for leaf in jax.tree.leaves(tree))

    def said(parts: list[str]) -> str:
        return f"{', '.join(parts)} ({sum(counts[part] for part in parts):,} parameters)"

    present = [part for part in (*STAGES, "head") if part in counts]
    frozen_ones, trainable_params = ([part for part in present if (part in frozen) is stays] for stays in (True, False))
    return f"frozen: {said(frozen_ones)}; learning: {said(trainable_params)}"
