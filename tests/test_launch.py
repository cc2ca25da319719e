"""The launch files of docs/launch/: valid flags, and consistent numbers of processes, devices and CPUs."""

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
    """Returns the Service and the Job."""
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))


def parse(arguments):
    config = parser.parse(TrainConfig, arguments, prog="train.py")
    config.check()
    return config


def parse_container(container, process_id=0):
    return parse([argument.replace("$(JOB_COMPLETION_INDEX)", str(process_id)) for argument in container["args"]])


def directive(slurm, name):
    return re.search(rf"^#SBATCH --{name}=(\S+)$", slurm, re.MULTILINE)[1]


def test_slurm_file_is_valid_bash():
    subprocess.run(["bash", "-n", LAUNCH / "slurm.sh"], check=True)


def test_slurm_flags_fit_together(slurm):
    command = re.search(r"python train\.py ((?:.*\\\n)*.*)", slurm)[1].replace("\\\n", " ")
    config = parse(shlex.split(command))
    assert config.distributed
    assert config.num_processes is None
    tasks = int(directive(slurm, "nodes")) * int(directive(slurm, "ntasks-per-node"))
    assert config.batch_size % tasks == 0
    assert config.batch_size // tasks % config.ghost_batch_size == 0  # batch norm within a device
    assert config.workers < int(directive(slurm, "cpus-per-task"))
    assert directive(slurm, "ntasks-per-node") == directive(slurm, "gpus-per-node")  # one process per device


def test_slurm_signals_and_requeues(slurm):
    assert directive(slurm, "signal") == "TERM@120"  # "B:TERM" would signal only the shell
    assert "#SBATCH --requeue\n" in slurm


@pytest.mark.parametrize(
    ("status", "starts", "queued"), [(143, 0, True), (75, 3, True), (75, 20, False), (2, 0, False)]
)
def test_slurm_requeues_interrupted_jobs(tmp_path, status, starts, queued):
    for name, command in (("srun", f"exit {status}"), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{command}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(starts)}
    done = subprocess.run(["bash", LAUNCH / "slurm.sh"], env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == status
    assert done.stdout == ("requeue 7\n" if queued else "")


def test_kubernetes_processes_fit_together(kubernetes):
    _, job = kubernetes
    spec = job["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert container["command"] == ["python", "train.py"]
    config = parse_container(container, process_id=1)
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == config.num_processes
    assert "--process-id=$(JOB_COMPLETION_INDEX)" in container["args"]
    devices = spec["parallelism"] * container["resources"]["limits"]["nvidia.com/gpu"]
    assert config.batch_size // devices % config.ghost_batch_size == 0
    assert config.workers < int(container["resources"]["limits"]["cpu"])


def test_kubernetes_pods_find_coordinator(kubernetes):
    service, job = kubernetes
    name, pod = service["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == name
    config = parse_container(pod["containers"][0])
    host, port = config.coordinator_address.split(":")
    assert host == f"{job['metadata']['name']}-0.{name}"
    assert {"containerPort": int(port)} in pod["containers"][0]["ports"]


def test_kubernetes_preemption_is_free(kubernetes):
    spec = kubernetes[1]["spec"]
    codes = []
    for rule in spec["podFailurePolicy"]["rules"]:
        codes += rule.get("onExitCodes", {}).get("values", [])
    assert codes == [143]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy requires it
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


def test_kubernetes_workers_have_shared_memory(kubernetes):
    pod = kubernetes[1]["spec"]["template"]["spec"]
    (shared,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shared-memory")
    assert shared["medium"] == "Memory"
    config = parse_container(pod["containers"][0])
    height, width = config.image_size
    batch = config.batch_size // config.num_processes * height * width * 3
    assert 3 * config.workers * batch < int(shared["sizeLimit"].removesuffix("Gi")) * 2**30
