"""The launch files of docs/launch/ have flags that there are, and parts that fit together."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from flaxresnet.cli import parser
from flaxresnet.config.train_config import TrainConfig

LAUNCH = Path(__file__).parents[1] / "docs/launch"


@pytest.fixture(scope="module")
def slurm():
    return (LAUNCH / "slurm.sh").read_text()


@pytest.fixture(scope="module")
def kubernetes():
    """The Service and the Job."""
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))


def config_of(words):
    config = parser.parse(TrainConfig, words, prog="train.py")
    config.check()
    return config


def directive(slurm, name):
    return re.search(rf"^#SBATCH --{name}=(\S+)$", slurm, re.MULTILINE)[1]


def test_the_slurm_file_is_a_shell_program():
    subprocess.run(["bash", "-n", LAUNCH / "slurm.sh"], check=True)


def test_the_slurm_file_has_flags_that_there_are(slurm):
    command = re.search(r"python train\.py ((?:.*\\\n)*.*)", slurm)[1].replace("\\\n", " ")
    config = config_of(shlex.split(command))
    assert config.distributed
    assert config.num_processes is None
    tasks = int(directive(slurm, "nodes")) * int(directive(slurm, "ntasks-per-node"))
    assert config.batch_size % tasks == 0
    assert config.batch_size // tasks % config.ghost_batch_size == 0  # statistics of a device's own images
    assert config.workers < int(directive(slurm, "cpus-per-task"))
    assert directive(slurm, "ntasks-per-node") == directive(slurm, "gpus-per-node")  # JAX: one device a process


def test_the_slurm_file_tells_processes_to_stop_and_queues_again(slurm):
    assert directive(slurm, "signal") == "TERM@120"  # to the processes: "B:" would mean the shell alone
    assert "#SBATCH --requeue\n" in slurm


@pytest.mark.parametrize(
    ("status", "starts", "queued"), [(143, 0, True), (75, 3, True), (75, 20, False), (2, 0, False)]
)
def test_slurm_starts_again_what_was_cut_off_and_not_what_is_wrong(tmp_path, status, starts, queued):
    for name, does in (("srun", f"exit {status}"), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    told = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(starts)}
    ended = subprocess.run(["bash", LAUNCH / "slurm.sh"], env=os.environ | told, capture_output=True, text=True)
    assert ended.returncode == status
    assert ended.stdout == ("requeue 7\n" if queued else "")


def test_the_kubernetes_job_has_as_many_processes_as_it_says(kubernetes):
    _, job = kubernetes
    spec = job["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert container["command"] == ["python", "train.py"]
    config = config_of([word.replace("$(JOB_COMPLETION_INDEX)", "1") for word in container["args"]])
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == config.num_processes
    assert "--process-id=$(JOB_COMPLETION_INDEX)" in container["args"]
    devices = spec["parallelism"] * container["resources"]["limits"]["nvidia.com/gpu"]
    assert config.batch_size // devices % config.ghost_batch_size == 0
    assert config.workers < int(container["resources"]["limits"]["cpu"])


def test_the_kubernetes_pods_find_the_first_one(kubernetes):
    service, job = kubernetes
    name, pod = service["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == name
    config = config_of([word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in pod["containers"][0]["args"]])
    host, port = config.coordinator_address.split(":")
    assert host == f"{job['metadata']['name']}-0.{name}"
    assert {"containerPort": int(port)} in pod["containers"][0]["ports"]


def test_a_kubernetes_pod_that_was_told_to_stop_costs_no_retry_and_has_time_to_save(kubernetes):
    spec = kubernetes[1]["spec"]
    codes = [
        code for rule in spec["podFailurePolicy"]["rules"] for code in rule.get("onExitCodes", {}).get("values", [])
    ]
    assert codes == [143]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # which podFailurePolicy asks for
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


def test_kubernetes_workers_have_memory_to_hand_over_batches(kubernetes):
    pod = kubernetes[1]["spec"]["template"]["spec"]
    shared = {volume["name"]: volume for volume in pod["volumes"]}["shared-memory"]["emptyDir"]
    assert shared["medium"] == "Memory"
    config = config_of([word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in pod["containers"][0]["args"]])
    height, width = config.image_size
    batch = config.batch_size // config.num_processes * height * width * 3
    assert 3 * config.workers * batch < int(shared["sizeLimit"].removesuffix("Gi")) * 2**30
