"""The cells' table against a plain model of it: any free cell serves, sequences share cells, positions move."""

from time import thread_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphrt.errors import GraphError
from graphrt.models.cells import EMPTY, FIELDS, UNKNOWN, Cells

SIZE = 24


def put(cells: Cells, positions: range, sequence: int = 0) -> np.ndarray:
    taken = cells.find(len(positions))
    cells.occupy(taken, np.array(positions, np.int32), np.full(len(positions), sequence, np.int32))
    cells.settle(taken, np.array(positions) + 100)
    return taken


class PlainCells:
    """The same operations on a list of cells, each None or a dict, one cell after the other."""

    def __init__(self) -> None:
        self.cells = [None] * SIZE

    def put(self, count: int, sequence: int, start: int) -> None:
        free = [n for n, cell in enumerate(self.cells) if cell is None][:count]
        for position, n in enumerate(free, start):
            self.cells[n] = {"position": position, "sequences": {sequence}, "shift": 0, "token": position + 100}

    def inside(self, sequence: int, p0: int, p1: int) -> list[int]:
        return [
            n
            for n, cell in enumerate(self.cells)
            if cell is not None
            and (sequence in cell["sequences"] or sequence == -1)
            and cell["position"] >= p0
            and (p1 < 0 or cell["position"] < p1)
        ]

    def leave(self, n: int, sequences: set[int]) -> None:
        self.cells[n]["sequences"] -= sequences
        if not self.cells[n]["sequences"]:
            self.cells[n] = None

    def seq_rm(self, sequence: int, p0: int, p1: int) -> None:
        for n in self.inside(sequence, p0, p1):
            self.leave(n, set(range(64)) if sequence == -1 else {sequence})

    def seq_keep(self, sequence: int) -> None:
        for n in self.inside(-1, -1, -1):
            self.leave(n, set(range(64)) - {sequence})

    def seq_cp(self, source: int, target: int, p0: int, p1: int) -> None:
        for n in self.inside(source, p0, p1):
            self.cells[n]["sequences"].add(target)

    def move(self, sequence: int, p0: int, p1: int, moved) -> list[tuple[int, int]]:
        pairs = []
        inside = self.inside(sequence, p0, p1)
        inside = [n for n in inside if moved(self.cells[n]["position"]) != self.cells[n]["position"]]
        free = [n for n, cell in enumerate(self.cells) if cell is None]
        shared = [n for n in inside if len(self.cells[n]["sequences"]) > 1 and moved(self.cells[n]["position"]) >= 0]
        if len(shared) > len(free):
            raise GraphError("no room")
        for n in inside:
            position = moved(self.cells[n]["position"])
            if position < 0:
                self.leave(n, {sequence})
                continue
            if n in shared:
                other = free[len(pairs)]
                pairs.append((n, other))
                self.cells[other] = {**self.cells[n], "sequences": {sequence}}
                self.cells[n]["sequences"] -= {sequence}
                n = other
            self.cells[n]["shift"] += position - self.cells[n]["position"]
            self.cells[n]["position"] = position
        return pairs


def same(cells: Cells, plain: PlainCells) -> None:
    for n, cell in enumerate(plain.cells):
        found = (cells.positions[n], cells.sequences[n], cells.shifts[n], cells.tokens[n])
        if cell is None:
            assert found == (EMPTY, 0, 0, UNKNOWN)
        else:
            bits = sum(1 << s for s in cell["sequences"])
            assert found == (cell["position"], bits, cell["shift"], cell["token"])
    taken = [cell for cell in plain.cells if cell is not None]
    assert cells.used == len(taken)
    assert cells.is_shifted == any(cell["shift"] for cell in taken)
    for sequence in range(3):
        own = [cell["position"] for cell in taken if sequence in cell["sequences"]]
        assert cells.seq_pos_max(sequence) == max(own, default=-1)
        assert cells.seq_pos_min(sequence) == min(own, default=-1)
    free = [n for n, cell in enumerate(plain.cells) if cell is None]
    assert cells.find(len(free)).tolist() == free


BOUND = st.integers(-1, 12)
SEQUENCE = st.integers(0, 2)
ACTIONS = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 6), SEQUENCE),
    st.tuples(st.just("rm"), st.integers(-1, 2), BOUND, BOUND),
    st.tuples(st.just("keep"), SEQUENCE),
    st.tuples(st.just("cp"), SEQUENCE, SEQUENCE, BOUND, BOUND),
    st.tuples(st.just("add"), SEQUENCE, BOUND, BOUND, st.integers(-5, 5)),
    st.tuples(st.just("div"), SEQUENCE, BOUND, BOUND, st.integers(1, 4)),
)


@given(st.lists(ACTIONS, max_size=25))
def test_every_operation_agrees_with_a_plain_model(actions):
    cells, plain = Cells(SIZE), PlainCells()
    for name, *arguments in actions:
        if name == "put":
            count, sequence = arguments
            if count <= SIZE - cells.used:
                start = cells.last[sequence] + 1
                put(cells, range(start, start + count), sequence)
                plain.put(count, sequence, start)
        elif name in ("rm", "keep", "cp"):
            getattr(cells, f"seq_{name}")(*arguments)
            getattr(plain, f"seq_{name}")(*arguments)
        else:
            sequence, p0, p1, number = arguments
            by_name = {"add": lambda p, n=number: p + n, "div": lambda p, n=number: p // n}
            try:
                pairs = plain.move(sequence, p0, p1, by_name[name])
            except GraphError:
                with pytest.raises(GraphError, match="shared with others"):
                    getattr(cells, f"seq_{name}")(*arguments)
            else:
                moves = getattr(cells, f"seq_{name}")(*arguments)
                assert list(zip(*(side.tolist() for side in moves), strict=True)) == pairs
        same(cells, plain)


def test_a_table_in_given_memory_is_gone_on_from():
    memory = {name: np.zeros(SIZE, dtype) for name, dtype in FIELDS.items()}
    memory["positions"][:] = EMPTY
    memory["tokens"][:] = UNKNOWN
    first = Cells(SIZE, memory)
    put(first, range(6))
    first.seq_cp(0, 63, 0, 3)
    first.seq_add(0, 4, -1, 2)
    first.occupy(first.find(2), np.array([8, 9]), np.array([0, 0]))  # rows that were never written
    again = Cells(SIZE, memory)
    assert (again.used, again.last[0], again.last[63], again.is_shifted) == (6, 7, 2, True)
    np.testing.assert_array_equal(again.find(2), [6, 7])


def test_what_a_sequence_begins_with():
    cells = Cells(SIZE)
    put(cells, range(8))
    assert cells.history(0).tolist() == [100, 101, 102, 103, 104, 105, 106, 107]
    cells.seq_rm(0, 5, 6)
    assert cells.history(0).tolist() == [100, 101, 102, 103, 104]
    cells.seq_add(0, 6, -1, -1)
    assert cells.history(0).tolist() == [100, 101, 102, 103, 104], "moved tokens saw others than they stand behind now"
    assert cells.history(1).tolist() == []
    put(cells, range(4, 6), sequence=1)
    assert cells.history(1).tolist() == [], "a sequence that begins later has no beginning"


def test_finding_a_free_cell_far_behind_the_first():
    cells = Cells(100_000)
    put(cells, range(90_000))
    cells.seq_rm(0, 10, 11)
    cells.seq_rm(0, 80_000, 80_002)
    assert cells.find(2).tolist() == [10, 80_000]
    assert cells.find(4).tolist() == [10, 80_000, 80_001, 90_000]


def test_a_token_costs_the_same_in_a_long_context():
    """Processor time of what decoding does to the table, least of many."""

    def seconds(size):
        cells, times = Cells(size), []
        put(cells, range(size - 500))
        for position in range(size - 500, size):
            start = thread_time()
            cells.visible_with(put(cells, range(position, position + 1)))
            times.append(thread_time() - start)
        return np.median(times)

    assert seconds(1 << 17) < 3 * seconds(1 << 10)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda cells: cells.seq_rm(64), "sequence 64 is out of range"),
        (lambda cells: cells.seq_rm(-2), "sequence -2 is out of range"),
        (lambda cells: cells.seq_cp(0, 64), "sequence 64 is out of range"),
        (lambda cells: cells.seq_add(-1, 0, -1, 1), "sequence -1 is out of range"),
        (lambda cells: cells.seq_div(0, 0, -1, 0), "the divisor is 0; it must be at least 1"),
        (lambda cells: cells.seq_add(0, 0, -1, (1 << 31) - 3), "position 2147483648 of sequence 0 would be out"),
    ],
)
def test_operations_that_cannot_be(operation, message):
    cells = Cells(SIZE)
    put(cells, range(4))
    with pytest.raises(GraphError, match=message):
        operation(cells)
    assert cells.positions[:5].tolist() == [0, 1, 2, 3, EMPTY]
