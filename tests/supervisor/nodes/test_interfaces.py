"""The addresses that gloo and NCCL take, by their variables."""

from __future__ import annotations

import pytest

from supervisor.nodes.interfaces import Elsewhere, chosen, elsewhere, matching

FOUND = {
    "lo": ["127.0.0.1", "::1"],
    "eth0": ["10.0.0.2", "10.0.0.100", "fd00::2"],
    "eth0.7": ["10.7.0.2"],
    "ib0": [],
    "ib1": ["fd00::3"],
    "docker0": ["172.17.0.1"],
}
OWN = "10.0.0.2"
DOCKER = "GLOO_SOCKET_IFNAME=docker0"


def of(own: str = OWN, nccl: bool = False, default: str = "eth0", **environ: str) -> Elsewhere:
    return chosen(environ, own, default, FOUND, nccl, alone=not nccl)


@pytest.mark.parametrize("setting", [{}, {"GLOO_SOCKET_IFNAME": "eth0"}, {"GLOO_SOCKET_IFNAME": ""}])
def test_the_nodes_own_address(setting: dict[str, str]) -> None:
    """Nothing more is to be called where the ranks use the address of the node, or one that nobody knows."""
    assert of(**setting) == Elsewhere({})


def test_another_address_of_the_interface() -> None:
    """gloo takes the first one, whatever the node calls itself: a second address that floats is not it."""
    eth0 = "GLOO_SOCKET_IFNAME=eth0"
    assert of("10.0.0.100") == Elsewhere({eth0: OWN}, (), frozenset({eth0}))


def test_other_interfaces() -> None:
    """Each one that gloo shall use is called; one that is not there, or has no address, is named. Ranks without a GPU
    have nothing but gloo; others may never use it."""
    names = "docker0,eth0,ib0,eth1"
    absent = ("GLOO_SOCKET_IFNAME=ib0", "GLOO_SOCKET_IFNAME=eth1")
    assert of(GLOO_SOCKET_IFNAME=names) == Elsewhere({DOCKER: "172.17.0.1"}, absent, frozenset({DOCKER}))
    assert of(GLOO_SOCKET_IFNAME=names, nccl=True) == Elsewhere({DOCKER: "172.17.0.1"}, absent)


def test_nccl_where_there_is_a_gpu() -> None:
    """Its ranks find each other at the first address of the first interface that fits, one of IPv4 if there is one.
    Which others they use is not known."""
    assert of(nccl=True) == Elsewhere({})
    assert of(nccl=True, NCCL_SOCKET_IFNAME="=docker0").addresses == {"NCCL_SOCKET_IFNAME==docker0": "172.17.0.1"}
    assert of(nccl=True, NCCL_SOCKET_IFNAME="^eth0").addresses == {"NCCL_SOCKET_IFNAME=^eth0": "127.0.0.1"}
    assert of(nccl=True, NCCL_SOCKET_IFNAME="ib,docker").addresses == {"NCCL_SOCKET_IFNAME=ib,docker": "172.17.0.1"}
    assert of(nccl=True, NCCL_SOCKET_IFNAME="ib0") == Elsewhere({}, ("NCCL_SOCKET_IFNAME=ib0",))
    assert of(NCCL_SOCKET_IFNAME="ib0") == Elsewhere({})
    # One address is called once.
    both = of(nccl=True, GLOO_SOCKET_IFNAME="docker0", NCCL_SOCKET_IFNAME="docker0")
    assert both.addresses == {DOCKER: "172.17.0.1"} and not both.certain


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("eth", ["eth0", "eth0.7"]),
        ("=eth0,ib0", ["eth0"]),
        ("^docker,lo", ["eth0", "eth0.7", "ib1"]),
        ("^=eth0", ["lo", "eth0.7", "ib1", "docker0"]),
        ("eth1", []),
    ],
)
def test_names_as_nccl_reads_them(setting: str, names: list[str]) -> None:
    assert matching(setting, FOUND) == names


def test_this_machine() -> None:
    """Another address of the loopback interface is not the one that gloo takes."""
    assert elsewhere({}, "127.0.0.1") == Elsewhere({})
    assert elsewhere({}, "127.0.0.2").addresses["GLOO_SOCKET_IFNAME=lo"] == "127.0.0.1"
