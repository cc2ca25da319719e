"""The C library's allocator: freed memory stays with the process, so that later steps cause few page faults."""

import json
import subprocess
import sys
from importlib import import_module

import pytest

import flaxresnet as fr
from flaxresnet.runtime.errors import UserError

# Frees a block of memory, then runs training steps. One process for both, because each would import JAX.
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
after_free = resident()
returned = malloc_trim()
after_trim = resident()

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
page_faults = []
ready = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    state, metrics = step(state, metrics, batch)
    ready.append(all(leaf.is_ready() for leaf in jax.tree.leaves(state.params)))
    jax.block_until_ready(state)
    page_faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
scratch = step.memory_analysis().temp_size_in_bytes
pages = scratch // resource.getpagesize()
print(json.dumps([held, after_free, after_trim, returned, page_faults, ready, scratch, pages]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is on Linux")
def test_freed_memory_stays_until_trim():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    if "no mallopt" in done.stderr:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    held, after_free, after_trim, returned, page_faults, ready, scratch, pages = json.loads(done.stdout)
    assert after_free > held - 250  # MiB; the bytes object took 200 MiB more
    assert after_trim < after_free - 150
    assert returned is True

    # By default, glibc maps and unmaps blocks of more than 32 MiB, so that each step would fault on all their pages.
    assert scratch > 40 * 2**20, "the step needs too little scratch memory for this test"
    # The median of three steps, because a step sometimes gets a block at a new address.
    assert sorted(page_faults[3:])[1] < pages / 10, page_faults

    # Only the main thread's heap keeps memory, so a step has to run in the calling thread.
    assert all(ready), ready


def test_fit_and_commands_disable_trim(monkeypatch, tmp_path, capsys):
    callers = []
    fitting = import_module("flaxresnet.fitting")
    main = import_module("flaxresnet.cli.main")
    monkeypatch.setattr(fitting, "disable_malloc_trim", lambda: callers.append("fit"))
    with pytest.raises(UserError):
        fr.fit(fr.TrainConfig(data=str(tmp_path / "nowhere"), workdir=str(tmp_path / "run")))
    monkeypatch.setattr(main, "disable_malloc_trim", lambda: callers.append("command"))
    monkeypatch.setattr(sys, "argv", ["flaxresnet", "summary", "resnet14", "--depth", "blocks"])
    assert main.main() == 0
    assert "resnet" in capsys.readouterr().out.lower()
    assert callers == ["fit", "command"]
