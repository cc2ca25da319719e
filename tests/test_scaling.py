"""The model of `benchmarks/scaling.py` against calculations by hand."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import scaling
from allreduce_model import ring_bytes, small_exchange
from scaling import Arguments, Network, predict

# 10⁶ parameters, 10⁹ operations an image; a GPU that does 10¹² a second; links of 1 GB/s and 0.1 GB/s.
NETWORK = Network(parameters=1_000_000, flops=1_000_000_000, batch_norms=10)
MACHINE = Arguments(
    batch=100,
    tflops=2.0,
    efficiency=0.5,
    node_gpus=4,
    link=1.0,
    network=0.1,
    reached=1.0,
    hop=0.0,
    core_rate=50.0,
    cores=4.0,
    checkpoint_steps=10,
    host_copy=0.08,
    disk=0.004,
)


def test_resnet50_is_the_published_one():
    network = Network.of("resnet50", 224)
    assert network.parameters == 25_557_032  # torchvision's
    assert network.flops == pytest.approx(2 * 4.1e9, rel=0.02)  # 4.1 billion multiply-adds
    assert network.batch_norms == 53


def test_one_gpu_has_nothing_to_exchange():
    one = predict(NETWORK, replace(MACHINE, hop=5.0), 1)
    assert one.compute == pytest.approx(300)  # 3 · 10⁹ · 100 / 10¹², in ms
    assert one.all_reduce == one.exposed == one.norm == 0
    assert one.efficiency == one.efficiency_local == 1


def test_each_gpu_of_a_ring_sends_its_share_around_twice():
    assert [ring_bytes(100, n) for n in (1, 2, 4)] == [0, 100, 150]
    assert predict(NETWORK, MACHINE, 4).all_reduce == pytest.approx(6)  # 1.5 · 4 MB over 1 GB/s
    assert predict(NETWORK, MACHINE, 8).all_reduce == pytest.approx(70)  # 1.75 · 4 MB over 0.1 GB/s, between nodes
    assert predict(NETWORK, replace(MACHINE, hop=1000.0), 4).all_reduce == pytest.approx(6 + 2 * 3)


def test_a_small_message_goes_up_a_tree_and_down():
    assert [small_exchange(n, 1.0) for n in (1, 2, 4, 5, 256)] == [0, 2, 4, 6, 16]
    assert predict(NETWORK, replace(MACHINE, hop=1000.0), 4).norm == pytest.approx(10 * 2 * 4)


def test_overlap_hides_behind_the_backward_pass():
    assert predict(NETWORK, replace(MACHINE, overlap=0.1), 8).exposed == pytest.approx(70 - 0.1 * 200)
    assert predict(NETWORK, replace(MACHINE, overlap=1.0), 8).exposed == 0


def test_efficiency_falls_with_the_number():
    found = [predict(NETWORK, replace(MACHINE, hop=5.0), n) for n in (1, 2, 4, 8, 16, 32)]
    assert all(more.efficiency < less.efficiency for less, more in pairwise(found))
    assert all(one.efficiency <= one.efficiency_local for one in found)
    # 8 GPUs: 300 ms, 10 for a checkpoint, 70 exposed.
    eight = predict(NETWORK, MACHINE, 8)
    assert eight.efficiency == pytest.approx(310 / 380)
    assert eight.images_per_second == pytest.approx(8 * 100 / 0.380)


def test_a_checkpoint_stops_training_for_its_copy_to_the_host():
    found = predict(NETWORK, MACHINE, 1)
    assert found.checkpoint == pytest.approx(10)  # 8 MB over 0.08 GB/s, every 10 steps
    assert found.checkpoint_write == pytest.approx(2)  # seconds, of 3 for 10 steps


def test_cores_that_reading_takes():
    found = predict(NETWORK, MACHINE, 1)
    assert found.cores_per_gpu == pytest.approx(100 / 0.310 / 50)
    assert found.images_per_second_read == 4 * 50  # fewer than the GPU could take
    assert found.hours == pytest.approx(90 * 1_281_167 / 200 / 3600)
    assert predict(NETWORK, replace(MACHINE, cores=10.0), 1).images_per_second_read == found.images_per_second


def test_figures_go_to_a_file(tmp_path, capsys):
    path = tmp_path / "scaling.json"
    scaling.main(Arguments(gpus=(1, 8), model="resnet14", json=path))
    assert [one["gpus"] for one in json.loads(path.read_text())["predictions"]] == [1, 8]
    assert "Calculated, not measured" in capsys.readouterr().out


def test_reading_is_measured(tmp_path):
    arguments = Arguments(input_workers=(0,), pictures=40, rounds=2)
    (row,) = scaling.measure_input(tmp_path, arguments)
    assert 0 < row["lowest"] <= row["images_per_second"] <= row["highest"]
