"""Freed memory stays with the process: a step's scratch memory costs page faults once, not every time."""

import json
import subprocess
import sys
from importlib import import_module

import pytest

import flaxresnet as fr
from flaxresnet.runtime.errors import UserError

# One process, for each imports JAX: what becomes of a block that is freed, and of a training step's scratch memory.
PROGRAM = """
import ctypes, json, resource
from flaxresnet.runtime.malloc_tuning import disable_malloc_trim, malloc_trim

if not disable_malloc_trim():
    raise SystemExit("no mallopt")

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20

block = ctypes.create_string_buffer(b"x" * (200 * 2**20))
held = resident()
del block
kept = resident()
returned = malloc_trim()
left = resident()

import jax, jax.numpy as jnp, optax
import flaxresnet as fr
from flaxresnet.data.loader import Batch
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.training.metrics import Metrics
from flaxresnet.training.train_state import TrainState
from flaxresnet.training.step import make_train_step

model, optimizer = fr.ResNet(num_classes=3, stage_sizes=(1,), width=8), optax.sgd(1e-3)
state = jax.jit(lambda: TrainState.create(model, optimizer, jax.random.key(0), (64, 64)))()
batch = Batch(jnp.zeros((64, 64, 64, 3), jnp.uint8), jnp.zeros(64, jnp.int32), jnp.ones(64))
metrics = Metrics.zero()
options = fr.TrainConfig(recipe="tutorial")
step = jax.jit(make_train_step(model, optimizer, Preprocessing(64, 64), options, lambda _: 0.0), donate_argnums=(0, 1))
step = step.lower(state, metrics, batch).compile()
faults, there = [], []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    state, metrics = step(state, metrics, batch)
    there.append(all(leaf.is_ready() for leaf in jax.tree.leaves(state.params)))
    jax.block_until_ready(state)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
scratch = step.memory_analysis().temp_size_in_bytes
print(json.dumps([held, kept, left, returned, faults, there, scratch, scratch // resource.getpagesize()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is that of Linux")
def test_freed_memory_stays_until_returned():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    if "no mallopt" in done.stderr:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    held, kept, left, returned, faults, there, scratch, pages = json.loads(done.stdout)
    assert kept > held - 250  # two blocks of 200 MiB: the bytes and the buffer
    assert left < kept - 150
    assert returned is True

    # glibc maps a block of more than 32 MiB in and out, so that every step would clear each of these pages.
    assert scratch > 40 * 2**20, "the step shows nothing; let it have more scratch memory"
    assert sorted(faults[3:])[1] < pages / 10, faults  # now and then a block lies where none was

    # Only the heap of the main thread is kept, so a step runs in the thread that calls it.
    assert all(there), there


def test_training_and_the_commands_keep_freed_memory(monkeypatch, tmp_path, capsys):
    asked = []
    fit, main = import_module("flaxresnet.fitting"), import_module("flaxresnet.cli.main")
    monkeypatch.setattr(fit, "disable_malloc_trim", lambda: asked.append("fit"))
    with pytest.raises(UserError):
        fr.fit(fr.TrainConfig(data=str(tmp_path / "nowhere"), workdir=str(tmp_path / "run")))
    monkeypatch.setattr(main, "disable_malloc_trim", lambda: asked.append("command"))
    monkeypatch.setattr(sys, "argv", ["flaxresnet", "summary", "resnet14", "--depth", "blocks"])
    assert main.main() == 0
    assert "resnet" in capsys.readouterr().out.lower()
    assert asked == ["fit", "command"]
