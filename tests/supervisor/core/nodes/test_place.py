"""Which node this is: from options and from the variables of engines, in their order."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.nodes.engines import endpoint_of, nodes_of
from supervisor.core.nodes.place import PORT, Asked, Place, place_of, port_of

NOBODY = Asked()
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "n[08-10]",
    "SLURM_NODEID": "1",
    "SLURM_RESTART_COUNT": "2",
    "SLURM_JOB_NUM_NODES": "3",
}
JOBSET = {"JOBSET_NAME": "gpt", "REPLICATED_JOB_NAME": "node", "JOB_COMPLETION_INDEX": "1"}
TRAINJOB = {
    "PET_NNODES": "4",
    "PET_NODE_RANK": "3",
    "PET_MASTER_ADDR": "gpt-node-0-0.gpt",
    "PET_MASTER_PORT": "29500",
}
ELASTIC = {"PET_NNODES": "1:3", "PET_RDZV_ENDPOINT": "gpt-worker-0:23456", "PET_RDZV_ID": "gpt"}
BY_HAND = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "6000"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "0", "SLURM_NNODES": "2"}
ONE_STEP = {**SRUN, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "n08"}

SLURM_PORT = port_of("7.0")


@pytest.mark.parametrize(
    ("asked", "environ", "place"),
    [
        (NOBODY, {}, Place()),
        (NOBODY, {"NNODES": "1", "PET_NNODES": "1:1", "MASTER_ADDR": "x"}, Place()),
        (NOBODY, {"NNODES": "several", "PMI_SIZE": "x"}, Place()),
        (NOBODY, SRUN, Place(3, 3, 1, "n08", SLURM_PORT, "srun", "7.0", 2)),
        (NOBODY, ONE_STEP, Place()),
        (Asked((1, 1)), SRUN, Place()),
        (Asked((1, 1)), BATCH, Place()),
        (Asked((1, 1), host="localhost", port=1), {}, Place()),
        (Asked(host="localhost", node=0), {}, Place()),
        (Asked((1, 3)), SRUN, Place(1, 3, 1, "n08", SLURM_PORT, "srun", "7.0", 2)),
        (Asked((2, 2)), SRUN, Place(2, 2, 1, "n08", SLURM_PORT, "srun", "7.0", 2)),
        (Asked(port=99, host="ib0"), SRUN, Place(3, 3, 1, "ib0", 99, "srun", "7.0", 2)),
        (NOBODY, {**SRUN, **TRAINJOB, **BY_HAND}, Place(3, 3, 1, "n08", SLURM_PORT, "srun", "7.0", 2)),
        # One node of a step, which was started for each node by hand.
        (NOBODY, {**ONE_STEP, **BY_HAND}, Place(2, 2, 1, "10.0.0.1", 6000, "NNODES")),
        (Asked((2, 2)), JOBSET, Place(2, 2, 1, "gpt-node-0-0.gpt", port_of("gpt"), "JobSet", "gpt")),
        (NOBODY, TRAINJOB, Place(4, 4, 3, "gpt-node-0-0.gpt", 29500, "PET_NNODES")),
        (NOBODY, ELASTIC, Place(1, 3, None, "gpt-worker-0", 23456, "PET_NNODES", "gpt")),
        (NOBODY, {**ELASTIC, **BY_HAND}, Place(1, 3, None, "gpt-worker-0", 23456, "PET_NNODES", "gpt")),
        (NOBODY, BY_HAND, Place(2, 2, 1, "10.0.0.1", 6000, "NNODES")),
        (Asked(node=0), BY_HAND, Place(2, 2, 0, "10.0.0.1", 6000, "NNODES")),
        (Asked((2, 2), 0), {}, Place(2, 2, 0, None, PORT, "--nnodes")),
        (Asked((2, 2), None, "a"), {}, Place(2, 2, None, "a", PORT, "--nnodes")),
        (Asked((2, 2), 1, "a", 5, "j"), {}, Place(2, 2, 1, "a", 5, "--nnodes", "j")),
        (Asked((2, 2), 1, "a", None, "j"), {}, Place(2, 2, 1, "a", port_of("j"), "--nnodes", "j")),
        # From a shell of the job, to each node by ssh.
        (Asked((2, 2), 1, "a"), BATCH, Place(2, 2, 1, "a", PORT, "--nnodes")),
        (Asked((2, 2), 1, "a"), {"PMI_SIZE": "2"}, Place(2, 2, 1, "a", PORT, "--nnodes")),
    ],
)
def test_places(asked: Asked, environ: Mapping[str, str], place: Place) -> None:
    """An option is stronger than the engine, an engine near to the process stronger than one that is far."""
    assert place_of(asked, environ) == place


@pytest.mark.parametrize(
    ("asked", "environ", "says"),
    [
        (NOBODY, BATCH, "put srun --ntasks-per-node=1 before supervise launch"),
        (NOBODY, {**BATCH, "SLURM_STEP_ID": "4294967291"}, "SLURM_JOB_NUM_NODES"),
        (NOBODY, {**SRUN, "SLURM_STEP_NUM_TASKS": "6"}, "6 times on 3 nodes .*ntasks-per-node=1"),
        (NOBODY, {**ONE_STEP, "SLURM_STEP_NUM_TASKS": "2"}, "2 times on 1 node "),
        (NOBODY, {**SRUN, "SLURM_STEP_NODELIST": "n[08-09]"}, "names 2 nodes"),
        (NOBODY, {**SRUN, "SLURM_NODEID": "x"}, "SLURM_NODEID is 'x'"),
        (Asked((4, 4)), SRUN, "--nnodes 4, and srun starts this command on 3"),
        (NOBODY, JOBSET, "JobSet .*give --nnodes"),
        (Asked((2, 2)), {}, "--rdzv-endpoint"),
        (Asked((2, 2), 1), {}, "--rdzv-endpoint"),
        (Asked(None, 1), {}, "there is one node"),
        (NOBODY, {"NNODES": "2", "NODE_RANK": "1"}, "--rdzv-endpoint"),
        (NOBODY, {"PET_NNODES": "two"}, "NNODES two"),
        (NOBODY, {"NNODES": "0"}, "NNODES 0"),
        (NOBODY, {"PET_NNODES": "3:2"}, "above the maximum"),
        (NOBODY, {"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun starts this command 2 times"),
    ],
)
def test_refusals(asked: Asked, environ: Mapping[str, str], says: str) -> None:
    """Nodes that would each train alone, or never meet, are refused in a sentence."""
    with pytest.raises(ValueError, match=says):
        place_of(asked, environ)


NAMES = (*SRUN, *JOBSET, *TRAINJOB, *ELASTIC, *BY_HAND, "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
VALUES = st.one_of(st.sampled_from(["", "0", "1", "2", "1:2", "n[1-2]", "auto", "a:b", "-1"]), st.text(max_size=8))


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_any_environment(environ: dict[str, str]) -> None:
    """A sound place, or a sentence."""
    try:
        place = place_of(NOBODY, environ)
    except ValueError as error:
        assert "\n" not in str(error).replace("\\n", "") or any("\n" in value for value in environ.values())
        return
    assert 1 <= place.least <= place.most and 0 < place.port < 1 << 16
    assert place.alone or place.leader is not None or place.node == 0


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("a", ("a", None)),
        ("a.b:1", ("a.b", 1)),
        ("10.0.0.1:29400", ("10.0.0.1", 29400)),
        ("::1", ("::1", None)),
        ("fe80::1%eth0", ("fe80::1%eth0", None)),
        ("[::1]:7", ("::1", 7)),
        ("[::1]", ("::1", None)),
        ("localhost:0", ("localhost", None)),
    ],
)
def test_endpoints(text: str, endpoint: tuple[str, int | None]) -> None:
    """A host, with its port or without."""
    assert endpoint_of(text, "--rdzv-endpoint") == endpoint


@pytest.mark.parametrize("text", ["", ":5", "a:", "a:65536", "a:b", "tcp://a:5", "[::1", "a b", "::1:x"])
def test_no_endpoints(text: str) -> None:
    """One sentence that names the option."""
    with pytest.raises(ValueError, match=r"^--rdzv-endpoint"):
        endpoint_of(text, "--rdzv-endpoint")


def test_numbers_of_nodes() -> None:
    """N or MIN:MAX."""
    assert [nodes_of(text, "--nnodes") for text in ("1", " 2", "1:2", "2:2")] == [(1, 1), (2, 2), (1, 2), (2, 2)]
    for text in ("0", "0:2", "2:1", "", "x", "1:2:3", "-1"):
        with pytest.raises(ValueError, match="--nnodes"):
            nodes_of(text, "--nnodes")


def test_ports_of_jobs() -> None:
    """They are where no client's are, spread, and the same in any process."""
    ports = [port_of(str(job)) for job in range(2000)]
    assert all(20000 <= port < 30000 for port in ports) and len(set(ports)) > 1700
    assert port_of("7.0") == 23560
