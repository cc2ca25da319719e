"""Freed memory stays with the process: a step's scratch memory costs page faults once, not every time."""

import subprocess
import sys
from importlib import import_module

import pytest

import flaxresnet as fr
from flaxresnet.errors import UserError

PROGRAM = """
import resource, sys
from flaxresnet.memory import keep_freed_memory
kept = len(sys.argv) > 1 and keep_freed_memory()
import jax, jax.numpy as jnp
program = jax.jit(lambda x: jnp.sum((x @ x) @ (x.T @ x)))  # products and packed parts of them
x = jax.block_until_ready(jnp.ones((2048, 2048)))
faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(program(x))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(kept), sorted(faults)[4])  # now and then a block lies where none was
"""


def page_faults(*arguments):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    kept, faults = map(int, done.stdout.split())
    return bool(kept), faults


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is that of Linux")
def test_the_scratch_memory_of_a_program_is_kept():
    _, before = page_faults()
    kept, after = page_faults("keep")
    if not kept:
        pytest.skip("this C library has no mallopt")
    if not before:
        pytest.skip("here none is given back in the first place")
    assert after < before / 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is that of Linux")
def test_freed_memory_can_be_returned():
    program = """
import ctypes, resource
from flaxresnet.memory import keep_freed_memory, return_freed_memory
if not keep_freed_memory():
    raise SystemExit("no mallopt")
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20
block = ctypes.create_string_buffer(b"x" * (200 * 2**20))
held = resident()
del block
kept = resident()
returned = return_freed_memory()
print(held, kept, resident(), returned)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if "no mallopt" in done.stderr:
        pytest.skip("this C library has no mallopt")
    held, kept, left, returned = done.stdout.split()
    assert int(kept) > int(held) - 250  # two blocks of 200 MiB: the bytes and the buffer
    assert int(left) < int(kept) - 150
    assert returned == "True"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is that of Linux")
def test_programs_run_in_the_thread_that_calls_them_whose_heap_is_kept():
    program = """
from flaxresnet.memory import keep_freed_memory
kept = keep_freed_memory()
import jax, jax.numpy as jnp
program = jax.jit(lambda x: jnp.linalg.matrix_power(x, 32))  # long enough to be seen running
x = jax.block_until_ready(program(jnp.ones((1000, 1000))))
print(int(kept), int(program(x).is_ready()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kept, there = done.stdout.split()
    if kept == "0":
        pytest.skip("this C library has no mallopt")
    assert there == "1"


def test_training_and_the_commands_keep_freed_memory(monkeypatch, tmp_path, capsys):
    asked = []
    fit, main = import_module("flaxresnet.training.fit"), import_module("flaxresnet.__main__")
    monkeypatch.setattr(fit, "keep_freed_memory", lambda: asked.append("fit"))
    with pytest.raises(UserError):
        fr.fit(fr.TrainConfig(data=str(tmp_path / "nowhere"), workdir=str(tmp_path / "run")))
    monkeypatch.setattr(main, "keep_freed_memory", lambda: asked.append("command"))
    monkeypatch.setattr(sys, "argv", ["flaxresnet", "summary", "resnet14", "--depth", "blocks"])
    assert main.main() == 0
    assert "resnet" in capsys.readouterr().out.lower()
    assert asked == ["fit", "command"]
