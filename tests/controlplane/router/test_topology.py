import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.router import convert, topology_file
from controlplane.router.convert import InvalidTopology
from controlplane.router.counters import Counters
from controlplane.router.topology import InstalledTopology, supersedes
from controlplane.routing import fleet
from dataplane.names import pin_key
from dataplane.pb.topology_pb2 import Model, Pool, Replica, Topology
from tests.controlplane.router import world
from tests.controlplane.router.test_values import RUNS


def topology(number: int, published: int, cluster: str = "a") -> Topology:
    return Topology(number=number, published_unix_ms=published, cluster=cluster)


@pytest.mark.parametrize(
    ("new", "taken"),
    [
        (topology(11, 100), True),  # the next one, within the same millisecond
        (topology(11, 50), True),  # the controller's clock went back
        (topology(9, 50), False),  # an older one, from a controller that lost its place
        (topology(10, 100), False),  # the same one
        (topology(1, 200), True),  # the store was reset
        (topology(1, 50), False),  # the store was reset and the clock went back: an operator decides
        (topology(1, 50, "b"), True),  # another cluster
    ],
)
def test_what_supersedes_number_10(new: Topology, taken: bool) -> None:
    assert supersedes(new, topology(10, 100)) is taken


def test_anything_supersedes_nothing() -> None:
    assert supersedes(topology(0, 0), None)


@RUNS
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_within_one_counter_the_number_never_falls(numbers: list[int]) -> None:
    held: Topology | None = None
    for number in numbers:  # later numbers are published later, in whatever order they arrive
        new = topology(number, 1000 + number)
        if supersedes(new, held):
            assert held is None or new.number > held.number
            held = new
    assert held is not None
    assert held.number == max(numbers)


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / topology_file.FILE_NAME
    assert topology_file.read(path) is None
    topology_file.write(path, world.topology(3))
    assert topology_file.read(path) == world.topology(3)
    assert [entry.name for entry in tmp_path.iterdir()] == [topology_file.FILE_NAME]


@RUNS
@given(st.integers(0, 1 << 16), st.integers(1, 255))
def test_a_changed_byte_is_found(at: int, change: int) -> None:
    payload = world.topology().SerializeToString()
    content = bytearray(topology_file.encoded(payload))
    content[at % len(content)] ^= change
    with pytest.raises(topology_file.CorruptTopology):
        topology_file.decoded(bytes(content))


async def test_a_newer_snapshot_is_installed_and_the_newest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / topology_file.FILE_NAME
    seen: list[fleet.Topology] = []
    counters = Counters()
    installed = InstalledTopology(path, seen.append, counters)
    assert not installed.load()
    for number in (1, 2, 3):
        assert installed.offer(world.topology(number))
    assert not installed.offer(world.topology(3))
    assert not installed.offer(world.topology(2))
    await installed.saved()
    assert [snapshot.number for snapshot in seen] == [1, 2, 3]
    assert (counters.topologies_installed, counters.topologies_refused) == (3, 1)
    again = InstalledTopology(path, seen.append, counters)
    assert again.load()
    assert (again.number, again.from_disk) == (3, True)
    assert not again.offer(world.topology(3)), "the controller confirms it"
    assert not again.from_disk


async def test_an_install_that_fails_keeps_the_old_one(tmp_path: Path) -> None:
    def broken(_topology: fleet.Topology) -> None:
        raise RuntimeError

    installed = InstalledTopology(tmp_path / topology_file.FILE_NAME, broken, Counters())
    assert not installed.offer(world.topology(1))
    assert installed.number == 0
    assert not installed.ready.is_set()


async def test_a_failed_write_is_counted(tmp_path: Path) -> None:
    counters = Counters()
    installed = InstalledTopology(tmp_path / "missing" / "topology.pb", lambda _: None, counters)
    assert installed.offer(world.topology(1))
    await installed.saved()
    assert counters.topology_write_failures == 1
    await asyncio.sleep(0)


def test_conversion() -> None:
    converted = convert.topology(world.topology(4))
    assert (converted.number, converted.cluster) == (4, "test")
    model = converted.models[0]
    assert (model.name, model.adapters, model.pools) == (
        "tiny",
        (fleet.AdapterInfo("sql"),),
        (fleet.PoolInfo("tiny-mixed", fleet.MIXED),),
    )
    replica = converted.replicas[0]
    assert (replica.state, replica.role, replica.pin) == (fleet.READY, fleet.MIXED, pin_key("tiny-mixed-0.g1"))


def changed(**fields: object) -> Topology:
    topology = world.topology()
    for name, value in fields.items():
        setattr(topology.replicas[0], name, value)
    return topology


@pytest.mark.parametrize(
    "message",
    [
        changed(server="a b"),
        changed(server="tiny-mixed-0.g1\n"),
        changed(host="1.2.3.4;"),
        changed(pool="nobody"),
        changed(server="tiny-mixed-1.g1"),
        Topology(models=[Model(name="m\n")]),
        Topology(models=[Model(name="m", pools=[Pool(name="p"), Pool(name="p")])]),
        Topology(replicas=[Replica()]),
    ],
)
def test_what_no_gateway_could_use_is_refused(message: Topology) -> None:
    with pytest.raises(InvalidTopology):
        convert.topology(message)


def test_words_of_a_later_version_are_no_words_of_ours() -> None:
    message = world.topology()
    message.models[0].pools[0].role = 99  # type: ignore[assignment]
    message.replicas[0].state = 99  # type: ignore[assignment]
    converted = convert.topology(message)
    assert (converted.replicas[0].role, converted.replicas[0].state) == ("", "")
