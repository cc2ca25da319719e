"""The predictions of `benchmarks/scaling.py` against calculations by hand."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import scaling
from allreduce_model import ring_bytes, small_exchange
from scaling import Arguments, Network, predict

# 10⁶ parameters and 10⁹ operations an image; a GPU with 10¹² operations a second; links of 1 GB/s and 0.1 GB/s.
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


def test_resnet50_size_is_published():
    network = Network.of("resnet50", 224)
    assert network.parameters == 25_557_032  # torchvision's
    assert network.flops == pytest.approx(2 * 4.1e9, rel=0.02)  # 4.1 billion multiply-adds
    assert network.batch_norms == 53


def test_single_gpu_exchanges_nothing():
    prediction = predict(NETWORK, replace(MACHINE, hop=5.0), 1)
    assert prediction.compute == pytest.approx(300)  # 3 · 10⁹ · 100 / 10¹², in ms
    assert prediction.all_reduce == prediction.exposed == prediction.norm == 0
    assert prediction.efficiency == prediction.efficiency_local == 1


def test_ring_all_reduce_time():
    assert [ring_bytes(100, n) for n in (1, 2, 4)] == [0, 100, 150]
    assert predict(NETWORK, MACHINE, 4).all_reduce == pytest.approx(6)  # 1.5 · 4 MB over 1 GB/s
    assert predict(NETWORK, MACHINE, 8).all_reduce == pytest.approx(70)  # 1.75 · 4 MB over 0.1 GB/s, between nodes
    assert predict(NETWORK, replace(MACHINE, hop=1000.0), 4).all_reduce == pytest.approx(6 + 2 * 3)


def test_small_exchange_is_a_tree():
    assert [small_exchange(n, 1.0) for n in (1, 2, 4, 5, 256)] == [0, 2, 4, 6, 16]
    assert predict(NETWORK, replace(MACHINE, hop=1000.0), 4).norm == pytest.approx(10 * 2 * 4)


def test_overlap_reduces_exposed_time():
    assert predict(NETWORK, replace(MACHINE, overlap=0.1), 8).exposed == pytest.approx(70 - 0.1 * 200)
    assert predict(NETWORK, replace(MACHINE, overlap=1.0), 8).exposed == 0


def test_efficiency_falls_with_gpus():
    machine = replace(MACHINE, hop=5.0)
    predictions = [predict(NETWORK, machine, gpus) for gpus in (1, 2, 4, 8, 16, 32)]
    assert all(more.efficiency < fewer.efficiency for fewer, more in pairwise(predictions))
    assert all(prediction.efficiency <= prediction.efficiency_local for prediction in predictions)
    # 8 GPUs: 300 ms of compute, 10 for a checkpoint, 70 exposed.
    eight = predict(NETWORK, MACHINE, 8)
    assert eight.efficiency == pytest.approx(310 / 380)
    assert eight.images_per_second == pytest.approx(8 * 100 / 0.380)


def test_checkpoint_costs_host_copy():
    prediction = predict(NETWORK, MACHINE, 1)
    assert prediction.checkpoint == pytest.approx(10)  # 8 MB over 0.08 GB/s, every 10 steps
    assert prediction.checkpoint_write == pytest.approx(2)  # seconds, of 3 for 10 steps


def test_reading_limits_throughput():
    prediction = predict(NETWORK, MACHINE, 1)
    assert prediction.cores_per_gpu == pytest.approx(100 / 0.310 / 50)
    assert prediction.images_per_second_read == 4 * 50  # fewer than the GPU can train on
    assert prediction.hours == pytest.approx(90 * 1_281_167 / 200 / 3600)
    assert predict(NETWORK, replace(MACHINE, cores=10.0), 1).images_per_second_read == prediction.images_per_second


def test_json_has_predictions(tmp_path, capsys):
    path = tmp_path / "scaling.json"
    scaling.main(Arguments(gpus=(1, 8), model="resnet14", json=path))
    predictions = json.loads(path.read_text())["predictions"]
    assert [prediction["gpus"] for prediction in predictions] == [1, 8]
    assert "Calculated, not measured" in capsys.readouterr().out


def test_input_rate_is_measured(tmp_path):
    arguments = Arguments(input_workers=(0,), pictures=40, rounds=2)
    (row,) = scaling.measure_input(tmp_path, arguments)
    assert 0 < row["lowest"] <= row["images_per_second"] <= row["highest"]
