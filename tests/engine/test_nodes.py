"""NUMA nodes as the kernel shows them, and what is made of them: recorded /sys trees."""

from __future__ import annotations

import errno
from pathlib import Path
from types import MappingProxyType

import pytest

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel, QuantType, TensorInfo
from ktops_engine.machine import detect_machine
from ktops_engine.models.weights import Weights
from ktops_engine.native.load import load_native
from ktops_engine.node_memory import NodeShare, add_shares, count_shares
from ktops_engine.nodes import nodes_of_cpus, spread, thread_nodes

# node: (cpulist, MemTotal in kB, distances)
TWO_SOCKETS = {
    0: ("0-3,8-11", 263_859_804, "10 21"),
    1: ("4-7,12-15", 264_197_868, "21 10"),
}
# As tests/numa/run_qemu.py's machine shows itself.
ODD_NODES = {
    0: ("0-1", 702_800, "10 21 21 17"),
    1: ("2-3", 660_616, "21 10 12 28"),
    2: ("4", 0, "21 12 10 28"),
    3: ("", 298_268, "17 28 28 10"),
}
# Node 1 is offline: the distances are those of nodes 0, 2 and 3.
GAP = {
    0: ("0", 0, "10 30 20"),
    2: ("1", 1000, "30 10 20"),
    3: ("2", 1000, "20 20 10"),
}


@pytest.fixture
def tree(tmp_path: Path):
    """Writes nodes and what the cpuset allows; returns the two roots."""

    def write(nodes, allowed="0-1023"):
        for node, (cpus, kilobytes, distances) in nodes.items():
            folder = tmp_path / f"sys/devices/system/node/node{node}"
            folder.mkdir(parents=True)
            (folder / "cpulist").write_text(f"{cpus}\n")
            (folder / "meminfo").write_text(
                f"Node {node} MemTotal:       {kilobytes} kB\nNode {node} MemFree: 5 kB\n"
            )
            (folder / "distance").write_text(f"{distances}\n")
        (tmp_path / "proc/self").mkdir(parents=True)
        status = f"Cpus_allowed_list:\t0\nMems_allowed:\tff\nMems_allowed_list:\t{allowed}\n"
        (tmp_path / "proc/self/status").write_text(status)
        return tmp_path / "sys", tmp_path / "proc"

    return write


def test_cpus_belong_to_the_nodes_that_list_them(tree):
    assert nodes_of_cpus((0, 3, 4, 9, 15), *tree(TWO_SOCKETS)) == (0, 0, 1, 0, 1)


def test_cpus_of_a_node_without_memory_use_the_nearest_that_has_some(tree):
    assert nodes_of_cpus((0, 1, 2, 3, 4), *tree(ODD_NODES)) == (0, 0, 1, 1, 1)


def test_cpus_of_a_node_whose_memory_is_not_allowed_use_the_nearest_that_is(tree):
    roots = tree(ODD_NODES, allowed="0,3")
    assert nodes_of_cpus((0, 2, 4), *roots) == (0, 0, 0)


def test_a_node_without_cpus_has_no_rows(tree):
    assert 3 not in nodes_of_cpus(range(5), *tree(ODD_NODES))


def test_a_node_without_cpus_serves_where_only_its_memory_is_allowed(tree):
    assert nodes_of_cpus((0, 2), *tree(ODD_NODES, allowed="3")) == (3, 3)


def test_distances_count_only_nodes_that_are_online(tree):
    assert nodes_of_cpus((0, 1, 2), *tree(GAP)) == (3, 2, 3)


def test_a_cpu_that_no_node_lists_counts_for_the_first(tree):
    assert nodes_of_cpus((99,), *tree(TWO_SOCKETS)) == (0,)


def test_without_nodes_there_is_one(tmp_path):
    assert nodes_of_cpus((0, 1), tmp_path, tmp_path) == (0, 0)


def test_any_number_of_the_first_cpus_is_spread_over_the_nodes():
    assert spread((0, 1, 2, 3, 4), (0, 0, 1, 1, 1)) == (0, 2, 1, 3, 4)
    assert spread((5, 7), (0, 0)) == (5, 7)
    assert spread((), ()) == ()


def test_the_machine_s_cpus_come_in_turns_of_the_nodes(tree, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 4, 5})
    assert detect_machine(*tree(TWO_SOCKETS)).cpus == (0, 4, 1, 5, 2)


def wanted(mode, roots, cpus=(0, 4), is_built=True):
    return thread_nodes(mode, cpus, is_built=is_built, sys_root=roots[0], proc_root=roots[1])


def test_threads_have_nodes_where_there_are_several(tree):
    roots = tree(TWO_SOCKETS)
    assert wanted("auto", roots) == (0, 1)
    assert wanted("on", roots) == (0, 1)


def test_threads_have_none_where_that_is_wished_or_there_is_one(tree):
    roots = tree(TWO_SOCKETS)
    assert wanted("off", roots) is None
    for mode in ("auto", "on"):
        assert wanted(mode, roots, cpus=(0, 1)) is None
        assert wanted(mode, roots, cpus=(0, 1), is_built=False) is None


def test_a_library_without_numa_is_refused_only_when_numa_is_insisted_on(tree):
    roots = tree(TWO_SOCKETS)
    assert wanted("auto", roots, is_built=False) is None
    assert wanted("off", roots, is_built=False) is None
    with pytest.raises(KtopsError) as caught:
        wanted("on", roots, is_built=False)
    assert (caught.value.code, caught.value.exit_status) == ("numa-not-built", 2)
    assert caught.value.hint == "ktops build --numa on --force"


class Counted:
    """Stands for a pool on nodes 0 and 1 whose kernel answers `there`, or refuses."""

    nodes = (0, 1)

    def __init__(self, there, refusal=0):
        self.answer = [300 << 10, 200 << 10], there, refusal

    def count_placed(self, buffer, matrices):
        return self.answer


class Memory:
    """Stands for a buffer of the mapping in MAPS."""

    address = 0x7F0000200000


MAPS = """\
7f0000000000 default anon=9 N0=9 kernelpagesize_kB=4
7f0000200000 local anon=125 dirty=125 N0=100 N1=25 kernelpagesize_kB=4
"""


def test_what_is_there_is_what_the_kernel_counts(tmp_path):
    shares = count_shares(Counted([300 << 10, 120 << 10]), Memory(), [])
    assert shares == (
        NodeShare(0, 300 << 10, 300 << 10),
        NodeShare(1, 200 << 10, 120 << 10),
    )


def test_where_asking_is_forbidden_the_count_of_the_mapping_answers(tmp_path):
    (tmp_path / "maps").write_text(MAPS)
    first, second = count_shares(Counted([0, 0], refusal=1), Memory(), [], tmp_path / "maps")
    assert first.there_bytes == 300 << 10  # no more than wanted
    assert second.there_bytes == 100 << 10


@pytest.mark.parametrize("content", [None, "", "7f0000000000 default\n"])
def test_where_nothing_answers_it_is_not_told(tmp_path, content):
    if content is not None:
        (tmp_path / "maps").write_text(content)
    shares = count_shares(Counted([0, 0], refusal=1), Memory(), [], tmp_path / "maps")
    assert shares == (NodeShare(0, 300 << 10, None), NodeShare(1, 200 << 10, None))


def test_shares_add_up_as_long_as_all_are_told():
    assert add_shares(NodeShare(1, 5, 4), NodeShare(1, 6, 6)) == NodeShare(1, 11, 10)
    assert add_shares(NodeShare(1, 5, None), NodeShare(1, 6, 6)) == NodeShare(1, 11, None)


class Placer(Counted):
    """Stands for a pool whose kernel refuses once; notes what it is asked."""

    def __init__(self):
        super().__init__([0, 0])
        self.placed, self.num_held = [], 0

    def place(self, buffer, matrix):
        self.placed.append(matrix.rows)
        return errno.EPERM if matrix.rows == 37 else 0

    def hold(self, buffer):
        self.num_held += 1
        return 0


def test_every_tensor_is_placed_before_the_buffer_is_held(native_build):
    shapes = {"first": (37, 256), "second": (64, 256)}
    tensors = {
        name: TensorInfo(name, shape, QuantType.Q4_K, 0, 0, 144 * shape[0])
        for name, shape in shapes.items()
    }
    gguf = GgufModel((), None, MappingProxyType(tensors), 101 * 144, "deepseek2", None)
    weights, pool, seen = Weights(load_native(native_build), gguf, tensors), Placer(), []
    assert weights.place(pool, seen.append) == errno.EPERM
    assert (pool.placed, pool.num_held) == ([37, 64], 1)
    assert seen == [37 * 144, 64 * 144]
    weights.free()


def test_without_nodes_nothing_is_placed_and_nothing_is_asked(native_build):
    native = load_native(native_build)
    with native.create_pool((0,), (5,)) as pool, native.alloc(1 << 20) as buffer:
        assert pool.nodes == ()
        assert pool.hold(buffer) == 0
        assert count_shares(pool, buffer, []) == ()


def test_a_node_for_each_thread_is_needed(native_build):
    with pytest.raises(KtopsError, match="giving 2 threads a node"):
        load_native(native_build).create_pool((0,), (0, 0))
