"""The launchers: linted, and run dry with programs that write down how they were called."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import command
import pytest
import yaml

LAUNCH = command.ROOT / "scripts" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
RUN = ("--config=configs/x3d.py", "--workdir=/shared/x", "--config.optim.lr=0.5")
ODD = '--config.data.videos=a "b" $(c) \\d'  # arguments arrive as they are

FAKE = """#!{python}
import json, os, sys
call = {{"program": {name!r}, "arguments": sys.argv[1:], "environment": dict(os.environ)}}
if not sys.stdin.isatty() and {name!r} == "kubectl":
    call["input"] = sys.stdin.read()
with open({log!r}, "a") as file:
    file.write(json.dumps(call) + "\\n")
{after}
"""
HOSTNAMES = "if sys.argv[1:3] == ['show', 'hostnames']: print('n07\\nn08')"
# As srun does: the command once for each task, each with its number.
TASKS = """
import subprocess
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
task = lambda k: {**os.environ, "SLURM_PROCID": str(k), "SLURM_NTASKS": "2"}
codes = [subprocess.run(command, env=task(k)).returncode for k in range(2)]
sys.exit(max(codes))
"""


class Desk:
    """A folder of fake programs and the log of their calls."""

    def __init__(self, folder: pathlib.Path):
        self.bin, self.log = folder / "bin", folder / "calls"
        self.bin.mkdir()

    def fake(self, name: str, after: str = "") -> None:
        """Puts a program there that writes down its call."""
        path = self.bin / name
        path.write_text(
            FAKE.format(python=sys.executable, name=name, log=str(self.log), after=after)
        )
        path.chmod(0o755)

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """A launcher with the fakes first in the path, and nothing of ours in the environment."""
        self.log.write_text("")
        env = {"PATH": f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin", **environment}
        return subprocess.run(
            [str(LAUNCH / script), *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, program: str) -> list[dict]:
        """How a program was called, in order."""
        calls = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [call for call in calls if call["program"] == program]


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed (extra [test])")
    ended = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_without_arguments_they_say_how(desk, script):
    ended = desk.run(script.name)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert os.access(script, os.X_OK)


# ------------------------------------------------------------------------------------- one machine


def test_one_machine(desk):
    desk.fake("python")
    assert desk.run("machine.sh", *RUN, ODD, GPUS="0,3").returncode == 0
    (call,) = desk.calls("python")
    assert call["arguments"] == ["-m", "jaxact.main", *RUN, ODD]
    assert call["environment"]["CUDA_VISIBLE_DEVICES"] == "0,3"
    desk.run("machine.sh", *RUN)
    assert "CUDA_VISIBLE_DEVICES" not in desk.calls("python")[0]["environment"]


# ------------------------------------------------------------------------------------------- Slurm

SLURM = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "n[07-08]"}


def slurm(desk, code, **environment):
    """The batch script on two nodes whose tasks end with an exit code."""
    desk.fake("scontrol", HOSTNAMES)
    desk.fake("srun", TASKS)
    desk.fake("python", f"sys.exit({code})")
    return desk.run("slurm.sh", *RUN, ODD, **{**SLURM, **environment})


def test_slurm_starts_one_process_a_node(desk):
    assert slurm(desk, 0).returncode == 0
    (srun,) = desk.calls("srun")
    assert srun["arguments"][:4] == ["--kill-on-bad-exit=0", "--label", "bash", "-c"]
    assert srun["arguments"][5:] == ["jaxact", *RUN, ODD]
    assert srun["environment"]["COORDINATOR"] == "n07:21234"
    for number, call in enumerate(desk.calls("python")):
        assert call["arguments"] == [
            *("-m", "jaxact.main", *RUN, ODD),
            "--config.mesh.hosts=given",
            "--config.mesh.coordinator=n07:21234",
            "--config.mesh.processes=2",
            f"--config.mesh.process={number}",
        ]
    assert len(desk.calls("python")) == 2
    assert [call["arguments"] for call in desk.calls("scontrol")] == [
        ["show", "hostnames", "n[07-08]"]
    ]


@pytest.mark.parametrize("code", [143, 4, 137])
def test_slurm_requeues_what_was_taken_away(desk, code):
    ended = slurm(desk, code)
    assert ended.returncode == 0 and f"exit code {code}: requeued" in ended.stderr
    assert desk.calls("scontrol")[-1]["arguments"] == ["requeue", "41234"]


@pytest.mark.parametrize("code", [2, 3])
def test_slurm_leaves_mistakes_alone(desk, code):
    assert slurm(desk, code).returncode == code
    assert len(desk.calls("scontrol")) == 1


def test_slurm_gives_up_in_the_end(desk):
    ended = slurm(desk, 4, SLURM_RESTART_COUNT="3", MAX_RESTARTS="3")
    assert ended.returncode == 4 and "after 3 restarts" in ended.stderr
    assert len(desk.calls("scontrol")) == 1


def test_slurm_arrays_are_runs_of_their_own(desk):
    assert slurm(desk, 0, SLURM_ARRAY_TASK_ID="2").returncode == 0
    arguments = desk.calls("python")[0]["arguments"]
    assert "--workdir=/shared/x-2" in arguments and "--config.seed=2" in arguments


def test_slurm_headers():
    lines = (LAUNCH / "slurm.sh").read_text().splitlines()
    headers = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert headers == {
        "--job-name=jaxact",
        "--ntasks-per-node=1",
        "--requeue",
        "--open-mode=append",
        "--signal=TERM@180",
    }


# -------------------------------------------------------------------------------------- Kubernetes

CLUSTER = {
    "NAME": "x3d",
    "IMAGE": "registry/jaxact:1",
    "NODES": "4",
    "DEVICES": "8",
    "CLAIM": "runs",
}
TPU = {**CLUSTER, "ACCELERATOR": "tpu-v6e-slice", "TOPOLOGY": "4x4", "SLICES": "2", "DEVICES": "4"}

# The fields that ours may set, of the schema that a cluster checks a JobSet with.
SCHEMA = json.loads(pathlib.Path(__file__).with_name("jobset.json").read_text())["openAPIV3Schema"]
KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}


def faults(node, schema, path=""):
    """What an API server would refuse: unknown, missing and mistyped fields, values not listed."""
    if "x-kubernetes-int-or-string" in schema:
        return [] if type(node) in (int, str) else [f"{path} is {node!r}"]
    if type(node) is not KINDS[schema["type"]]:
        return [f"{path} is {node!r}, no {schema['type']}"]
    if node not in schema.get("enum", [node]):
        return [f"{path} is {node!r}"]
    if isinstance(node, list):
        return [bad for item in node for bad in faults(item, schema["items"], f"{path}[]")]
    if not isinstance(node, dict):
        return []
    wrong = [f"{path}.{key} is missing" for key in schema.get("required", ()) if key not in node]
    for key, value in node.items():
        of = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
        wrong += faults(value, of, f"{path}.{key}") if of else [f"{path}.{key} is unknown"]
    return wrong


def applied(desk, kind, environment):
    """The JobSet that kubectl was given."""
    desk.fake("kubectl")
    ended = desk.run("kubernetes.sh", kind, *RUN, ODD, **environment)
    assert ended.returncode == 0, ended.stderr
    (call,) = desk.calls("kubectl")
    assert call["arguments"] == ["apply", "-f", "-"]
    manifest = yaml.safe_load(call["input"])
    assert faults(manifest, SCHEMA) == []
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == "x3d"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 20
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 4 and spec["backoffLimit"] == 0
    assert spec["completionMode"] == "Indexed"
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2, 3]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    return manifest, job, pod, container


def test_gpu_jobset(desk):
    manifest, job, _, container = applied(desk, "gpu", CLUSTER)
    assert manifest["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "x3d"}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert container["image"] == "registry/jaxact:1"
    assert job["name"] == "host" and job["replicas"] == 1
    # As the pod with index 2 would run it.
    desk.fake("python")
    environment = {"PATH": f"{desk.bin}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    environment["JOB_COMPLETION_INDEX"] = "2"
    desk.log.write_text("")
    subprocess.run([*container["command"], *container["args"]], env=environment, check=True)
    (call,) = desk.calls("python")
    assert call["arguments"] == [
        *("-m", "jaxact.main", *RUN, ODD),
        "--config.mesh.hosts=given",
        "--config.mesh.coordinator=x3d-host-0-0.x3d:8476",
        "--config.mesh.processes=4",
        "--config.mesh.process=2",
    ]


def test_tpu_jobset(desk):
    manifest, job, pod, container = applied(desk, "tpu", TPU)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert job["replicas"] == 2
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == ["python", "-m", "jaxact.main"]
    assert container["args"] == [*RUN, ODD, "--config.mesh.hosts=auto"]
    pool = manifest["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert pool == "cloud.google.com/gke-nodepool"


@pytest.mark.parametrize(
    ("where", "value", "fault"),
    [
        (("spec", "failurePolicy", "rules", 0, "action"), "StopJobSet", "action is 'StopJobSet'"),
        (("spec", "failurePolicy", "rules", 0, "name"), None, "rules[].name is missing"),
        (("spec", "replicatedJobs", 0, "replicas"), "1", "replicas is '1', no integer"),
        (("spec", "replicatedJobs", 0, "completions"), 1, "completions is unknown"),
        (("spec", "network"), [], "network is [], no object"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_the_schema_refuses(desk, where, value, fault):
    manifest = applied(desk, "gpu", CLUSTER)[0]
    node = manifest
    for key in where[:-1]:
        node = node[key]
    if value is None:
        del node[where[-1]]
    else:
        node[where[-1]] = value
    (told,) = faults(manifest, SCHEMA)
    assert told.endswith(fault)


def test_a_dry_run_only_prints(desk):
    desk.fake("kubectl")
    ended = desk.run("kubernetes.sh", "gpu", *RUN, DRY="1", **CLUSTER)
    assert yaml.safe_load(ended.stdout)["kind"] == "JobSet"
    assert desk.calls("kubectl") == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"NAME": ""}, "NAME is not set"),
        ({"NAME": "X3D"}, "NAME=X3D"),
        ({"NODES": "four"}, "NODES=four"),
        ({"DEVICES": "0"}, "DEVICES=0"),
        ({"CLAIM": ""}, "CLAIM is not set"),
    ],
)
def test_what_kubernetes_refuses(desk, changes, says):
    desk.fake("kubectl")
    ended = desk.run("kubernetes.sh", "gpu", *RUN, **{**CLUSTER, **changes})
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and says in ended.stderr
    assert desk.calls("kubectl") == []
    assert desk.run("kubernetes.sh", "tpu", *RUN, **CLUSTER).returncode == 2  # no ACCELERATOR


# ----------------------------------------------------------------------------------------- TPU VMs


def test_tpu_vm_runs_it_on_every_worker(desk, tmp_path):
    desk.fake("gcloud")
    ended = desk.run("tpu_vm.sh", *RUN, ODD, TPU="my-pod", ZONE="us-central2-b", DIR="my jaxact")
    assert ended.returncode == 0, ended.stderr
    (call,) = desk.calls("gcloud")
    *front, last = call["arguments"]
    assert front == [
        *("compute", "tpus", "tpu-vm", "ssh", "my-pod"),
        *("--zone=us-central2-b", "--worker=all"),
    ]
    # As the shell of a worker would run it.
    worker = tmp_path / "my jaxact" / ".venv" / "bin"
    worker.mkdir(parents=True)
    desk.fake("python")
    shutil.copy(desk.bin / "python", worker / "python")
    desk.log.write_text("")
    subprocess.run(["bash", "-c", last.removeprefix("--command=")], cwd=tmp_path, check=True)
    (call,) = desk.calls("python")
    assert call["arguments"] == ["-m", "jaxact.main", *RUN, ODD, "--config.mesh.hosts=auto"]
