"""Records ResNet-50's parameter tree in `resnet50_tree.json`.

Run `python tests/golden/record_tree.py` after a deliberate change of names or shapes, read the diff, and commit it.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

import flaxresnet as fr

images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
flat = flatten_dict(jax.eval_shape(fr.ResNet50(num_classes=6).init, jax.random.key(0), images), sep="/")
tree = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in sorted(flat.items())}
Path(__file__).with_name("resnet50_tree.json").write_text(json.dumps(tree, indent=0) + "\n")
