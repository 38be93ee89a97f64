"""Where a process finds its place among others, and what it does there; nothing is started."""

import os
import socket
import sys
import types
import warnings

import jax.numpy as jnp
import pytest
from jax.experimental import multihost_utils

from jaxact.config import Mesh, Save, UserError
from jaxact.train import checkpoint, hosts
from jaxact.train.state import TrainState

AUTO = Mesh(hosts="auto", start_timeout=1)


@pytest.fixture
def environment(monkeypatch):
    """(**variables) -> sets them, after all that tell of other processes are gone."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JAX_")):
            monkeypatch.delenv(name)

    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


SLURM = {
    "SLURM_JOB_ID": "41234",
    "SLURM_STEP_NODELIST": "n[07-08,11]",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
}


def test_slurm_tells(environment):
    environment(**SLURM)
    assert hosts.place(AUTO) == {
        "coordinator_address": f"n07:{41234 % 4096 + 61440}",
        "num_processes": 3,
        "process_id": 2,
        "local_device_ids": [1],  # of the processes of a node each has one GPU
    }
    environment(JAX_LOCAL_DEVICE_IDS="0,1", JAX_COORDINATOR_PORT="999")
    where = hosts.place(AUTO)
    assert where["local_device_ids"] is None and where["coordinator_address"] == "n07:999"


def test_flags_come_before_the_environment(environment):
    environment(**SLURM, JAX_COORDINATOR_ADDRESS="other:1")
    given = Mesh(hosts="given", coordinator="here:5", processes=4, process=0)
    assert list(hosts.place(given).values()) == ["here:5", 4, 0, None]


@pytest.fixture
def tpu(monkeypatch):
    """JAX believes to be on a TPU VM, and has no metadata server to ask."""
    from jax._src.clusters import cloud_tpu_cluster, cluster

    for module in (cloud_tpu_cluster, cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value_from_metadata", lambda key: None)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.1")


# As GKE sets it, where no metadata server answers.
SLICE = {
    "TPU_SKIP_MDS_QUERY": "true",
    "TPU_WORKER_HOSTNAMES": "w0,w1,w2,w3",
    "TPU_WORKER_ID": "2",
}


def test_a_tpu_slice_tells(environment, tpu):
    environment(**SLICE)
    assert list(hosts.place(AUTO).values()) == ["w0:8482", 4, 2, None]


def test_several_tpu_slices_tell(environment, tpu):
    """As GKE sets it for a JobSet of two slices: numbers go on from slice to slice."""
    environment(**SLICE, MEGASCALE_NUM_SLICES="2", MEGASCALE_SLICE_ID="1")
    environment(MEGASCALE_COORDINATOR_ADDRESS="x3d-slice-0-0.x3d:8080")
    assert list(hosts.place(AUTO).values()) == ["x3d-slice-0-0.x3d:8482", 8, 6, None]


def test_a_coordinator_without_an_address(environment, tpu, monkeypatch, capsys):
    """Exit code 4, so that a launcher tries again."""

    def unknown(name):
        raise socket.gaierror

    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    monkeypatch.setattr(cloud_tpu_cluster.time, "sleep", lambda seconds: None)
    environment(**SLICE)
    with pytest.raises(SystemExit) as caught:
        hosts.place(AUTO)
    assert caught.value.code == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: config.mesh.hosts='auto': ") and "address w0" in line


def test_a_jobset_tells(environment, monkeypatch):
    """The answers of a cluster to JAX, for pod 2 of a job of four in the JobSet x3d."""
    from jax._src.clusters.k8s_cluster import K8sCluster

    job = types.SimpleNamespace(
        metadata=types.SimpleNamespace(
            name="x3d-host-0", labels={"jobset.sigs.k8s.io/jobset-name": "x3d"}
        ),
        spec=types.SimpleNamespace(parallelism=4),
    )
    owner = types.SimpleNamespace(controller=True, kind="Job")
    pod = types.SimpleNamespace(
        metadata=types.SimpleNamespace(labels={"job-name": job.metadata.name}, name="p"),
    )
    pod.metadata.owner_references = [owner]
    core = types.SimpleNamespace(
        list_namespaced_pod=lambda namespace, field_selector: types.SimpleNamespace(items=[pod])
    )
    batch = types.SimpleNamespace(read_namespaced_job=lambda name, namespace: job)
    fake = types.ModuleType("kubernetes")
    fake.config = types.SimpleNamespace(load_incluster_config=lambda: None)
    fake.client = types.SimpleNamespace(
        CoreV1Api=lambda: core,
        BatchV1Api=lambda: batch,
        exceptions=types.SimpleNamespace(ApiException=OSError),
    )
    monkeypatch.setitem(sys.modules, "kubernetes", fake)
    monkeypatch.setattr(K8sCluster, "_namespace", lambda: "here")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.1")
    environment(KUBERNETES_SERVICE_HOST="10.0.0.1", HOSTNAME="p", JOB_COMPLETION_INDEX="2")
    assert list(hosts.place(AUTO).values()) == ["x3d-host-0-0.x3d:55527", 4, 2, None]


def test_nothing_tells(environment, monkeypatch):
    with pytest.raises(UserError, match=r"config.mesh.hosts='auto', but nothing here says"):
        hosts.place(AUTO)
    # Kubernetes without the package that asks it.
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    environment(KUBERNETES_SERVICE_HOST="10.0.0.1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match="Kubernetes with the package kubernetes installed"):
            hosts.place(AUTO)


# ------------------------------------------------------------------------------- among the others


def test_who_did_not_come(tmp_path):
    where = {"num_processes": 4, "coordinator_address": "n07:5"}
    for number, age in ((0, 5), (2, 5), (3, 500)):
        (tmp_path / str(number)).write_text("")
        os.utime(tmp_path / str(number), (1000 - age, 1000 - age))
    assert hosts._absent(where, tmp_path, 900).startswith("host 1, 3 of 4 (no sign of it in ")
    assert hosts._absent(where | {"num_processes": 1}, tmp_path, 900) == "host 0 (n07:5) or another"


class Table(dict):
    """The coordinator's, as far as it is asked here."""

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self
        self[key] = value

    def key_value_dir_get(self, folder):
        return [item for item in self.items() if item[0].startswith(folder)]

    def blocking_key_value_get(self, key, limit):
        return self[key]

    def wait_at_barrier(self, name, limit):
        pass


@pytest.fixture
def table(monkeypatch):
    """(index) -> this process is that one of two, with one table."""
    entries = Table()

    def become(index):
        party = hosts.Heartbeat(index=index, count=2, limit=0.5, interval=0.1, client=entries)
        monkeypatch.setattr(hosts, "_heartbeat", party)
        return entries

    return become


def test_all_go_by_what_the_first_host_finds(table):
    table(0)
    assert hosts.agreed(lambda: [3, 6]) == [3, 6] and hosts.agreed(lambda: "") == ""
    table(1)
    assert hosts.agreed(lambda: [3]) == [3, 6] and hosts.agreed(lambda: "x") == ""


def test_a_last_line_stays_the_last(table, monkeypatch):
    """The watch does not write over it, and host 0 waits until the others have read it."""
    entries = table(0)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            entries["jaxact/beat/1"] = "ended with exit code 2"

    monkeypatch.setattr(hosts.time, "sleep", sleep)
    hosts._say_end(2)
    hosts._watch()
    assert entries["jaxact/beat/0"] == "ended with exit code 2" and len(slept) == 3


# ------------------------------------------------------------------------------------ checkpoints


def state(step):
    weights = {"a": jnp.full(3, float(step))}
    return TrainState(jnp.int32(step), weights, {}, {"all": jnp.zeros(2)}, {})


def test_only_training_asks_for_signals(tmp_path, monkeypatch):
    """A writing thread that asked would tell JAX that this host is at an earlier step."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    files = checkpoint.Checkpoints(tmp_path, Save(), "top1", True)
    files.save(state(3))
    files.close()
    assert files.steps() == [3] and asked == []


def test_a_host_restores_what_the_first_one_chose(tmp_path, table, monkeypatch):
    """Its own listing of a shared folder may be old, and what it finds there is not asked."""

    def unasked(folder):
        raise OSError(folder)

    files = checkpoint.Checkpoints(tmp_path, Save(), "top1", True)
    for step in (3, 6):
        files.save(state(step), {"top1": step / 10})
    files.wait()
    table(0)
    assert files.steps() == [3, 6] and files.best() == 6
    restored = files.restore(state(0))
    assert int(restored.step) == 6
    table(1)
    monkeypatch.setattr(files.manager, "all_steps", lambda: [3])
    monkeypatch.setattr(checkpoint, "verify", unasked)
    assert files.steps() == [3, 6] and files.best() == 6
    assert int(files.restore(state(0)).step) == 6
    monkeypatch.undo()
    files.close()
