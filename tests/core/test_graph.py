import random

import numpy as np
import pytest

import graphrt
from graphrt import Graph, GraphError, ops


def weight(name, *shape):
    return graphrt.weight(name, np.zeros(shape, np.float32))


def test_order_is_that_of_the_data_and_does_not_change():
    def build():
        x = graphrt.input("x", (2, 4))
        y = ops.mul_mat(weight("w", 3, 4), ops.silu(x))
        return Graph([ops.relu(y), y + y])

    graph = build()
    assert [node.name for node in graph.nodes] == ["silu_0", "mul_mat_0", "relu_0", "add_0"]
    assert [node.name for node in build().nodes] == [node.name for node in graph.nodes]
    assert list(graph.inputs) == ["x"]


def test_a_given_name_is_never_taken_by_another_node():
    x = graphrt.input("x", (2,))
    graph = Graph(ops.silu(ops.silu(x).named("silu_1")) + ops.silu(x))
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)


def test_a_deep_graph_needs_no_recursion():
    x = graphrt.input("x", (1,))
    for _ in range(5000):
        x = ops.silu(x)
    assert len(Graph(x).nodes) == 5000


def test_two_leafs_of_one_name_are_an_error():
    with pytest.raises(GraphError, match=r'two leafs are called "w"'):
        Graph(weight("w", 2) + weight("w", 2))


def test_an_input_needs_a_name():
    with pytest.raises(GraphError, match=r"needs a name"):
        Graph(ops.silu(graphrt.input("", (2,))))


def test_no_outputs_is_an_error():
    with pytest.raises(GraphError, match=r"at least one output"):
        Graph([])


def cache_and_write():
    cache = graphrt.state("cache", (8, 4))
    rows = graphrt.input("rows", (1, 4))
    ids = graphrt.input("ids", (1,), "i32")
    return cache, ops.set_rows(cache, rows, ids)


def test_reading_around_a_write_is_found():
    cache, written = cache_and_write()
    with pytest.raises(GraphError, match=r"reads cache and set_rows_\d writes it"):
        Graph([ops.silu(cache), written])


def test_reading_the_written_tensor_is_fine():
    cache, written = cache_and_write()
    assert Graph([ops.silu(written), ops.silu(written[2:4])]).nodes[0].op is ops.set_rows
    assert cache.root is written.root


def test_reading_before_the_write_is_fine_when_the_data_says_so():
    cache = graphrt.state("cache", (8, 4))
    ids = graphrt.input("ids", (1,), "i32")
    Graph(ops.set_rows(cache, ops.get_rows(cache, ids), ids))


def test_two_unordered_writes_are_found():
    cache, written = cache_and_write()
    other = ops.set_rows(cache, graphrt.input("other", (1, 4)), graphrt.input("at", (1,), "i32"))
    with pytest.raises(GraphError, match=r"in no order"):
        Graph([written, other])


def reads_and_writes(generator: random.Random) -> list[graphrt.Tensor]:
    """Results that read or write random rows of a state, each through one of those before or the state itself."""
    cache, x = graphrt.state("cache", (4, 2)), graphrt.input("x", (2, 2))
    held, results = [cache], []
    for _ in range(3):
        target = generator.choice([held[-1], held[-1], held[-1], *held])
        if generator.random() < 0.5:
            results.append(ops.silu(target[generator.choice([0, 2]) :]))
        else:
            row = generator.choice([0, 1, 2])
            written = ops.cpy(target[row : row + 2], generator.choice([x, x, *(y[:2] for y in results)]))
            results.append(written)
            held.append(cache if written.shape != cache.shape else written)
    return results


def has_order(a: graphrt.Tensor, b: graphrt.Tensor) -> bool:
    def needs(later: graphrt.Tensor, earlier: graphrt.Tensor) -> bool:
        return later is earlier or any(needs(src, earlier) for src in later.srcs if src is not None)

    return needs(a, b) or needs(b, a)


def rows(tensor: graphrt.Tensor) -> set[int]:
    return set(range(tensor.offset, tensor.offset + tensor.extent))


@pytest.mark.parametrize("seed", range(60))
def test_random_reads_and_writes_are_refused_exactly_where_two_have_no_order(seed):
    results = reads_and_writes(random.Random(seed))
    touched = [(node, rows(node.srcs[0]), node.op.kind == "write") for node in results]
    unordered = any(
        (writes or also_writes) and mine & others and not has_order(node, other)
        for number, (node, mine, writes) in enumerate(touched)
        for other, others, also_writes in touched[:number]
        if node.srcs[0].root is other.srcs[0].root
    )
    copies = [node for node, _, writes in touched if writes and node.srcs[1].root is node.root]
    if any(rows(node) & rows(node.srcs[1]) for node in copies):
        with pytest.raises(GraphError, match="reads what it writes"):
            Graph(results)
    elif unordered:
        with pytest.raises(GraphError, match="in no order"):
            Graph(results)
    else:
        Graph(results)


def test_a_write_may_read_its_own_memory_only_beside_what_it_writes():
    m, ids = graphrt.state("m", (8, 4)), graphrt.input("ids", (8,), "i32")
    Graph(ops.cpy(m[:, :2], m[:, 2:]))
    Graph(ops.cpy(m[1:], ops.cont(m[:-1])))
    with pytest.raises(GraphError, match=r"cpy_0 reads what it writes: .* lie over each other; let it read a copy"):
        Graph(ops.cpy(m[1:], m[:-1]))
    with pytest.raises(GraphError, match=r"set_rows_0 reads what it writes"):
        Graph(ops.set_rows(m, m, ids))
    blocks = graphrt.state("blocks", (4, 64), "q8_0")
    Graph(ops.cpy(blocks[:2], blocks[2:]))
    with pytest.raises(GraphError, match="reads what it writes"):
        Graph(ops.cpy(blocks[:3], blocks[1:]))


def test_writes_to_parts_that_do_not_meet_need_no_order():
    cache = graphrt.state("cache", (8, 4))
    x = graphrt.input("x", (4, 4))
    Graph([ops.cpy(cache[:4], x), ops.silu(cache[4:])])


@pytest.mark.parametrize("target", [weight("w", 8, 4), graphrt.input("i", (8, 4))], ids=["weight", "input"])
def test_only_states_and_results_can_be_written(target):
    with pytest.raises(GraphError, match=r"read-only"):
        Graph(ops.cpy(target, graphrt.input("x", (8, 4))))


def test_structure_tells_equal_wiring_from_equal_sizes():
    w = weight("w", 4, 4)
    x, y = graphrt.input("x", (4, 4)), graphrt.input("y", (4, 4))
    one, same = Graph(ops.mul_mat(w, x) - y), Graph(ops.mul_mat(w, x) - y)
    other = Graph(y - ops.mul_mat(w, x))
    assert one.structure() == same.structure()
    assert one.structure() != other.structure()
    assert one.structure() != Graph(ops.mul_mat(weight("w", 4, 4), x) - y).structure()
