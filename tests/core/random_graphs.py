"""Random graphs over all op families.

A graph grows step by step from a `Draw`: each step picks tensors made before and applies an op to them. Three rules
keep the right answer well defined on backends that round differently: numbers are clamped before they grow large; what
went through 16-bit or quantized products (`coarse`) feeds nothing that could magnify its error or flip an order; and an
output that rounding alone could move by more than its bound, as the oracle finds by trying, is none.

Dimensions: T tokens, D features, H heads, E experts, U used by each token, N cells of a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import graphrt
from graphrt import Graph, Tensor, dtypes, ops
from graphrt.dtypes import Array
from graphrt.testing import Draw
from tests.core.oracle import COARSE, well_defined

D, H, E, U = 32, 4, 4, 2
LARGE = 64.0  # numbers that may be larger are clamped
MATRICES = ("f32", "f32", "f16", "q8_0", "q4_0")
CACHES = ("f32", "f32", "f16", "q8_0")


@dataclass(frozen=True)
class Value:
    """A tensor of floats, the largest number that it may hold, and whether it is coarse."""

    tensor: Tensor
    bound: float
    coarse: bool = False


@dataclass
class RandomGraph:
    """A graph with the inputs of one run, and which of its outputs are coarse."""

    graph: Graph
    inputs: dict[str, Array]
    coarse: list[bool]


def random_graph(draw: Draw) -> RandomGraph:
    """A graph of 5 to 60 nodes."""
    return _Grower(draw).grow()


@dataclass
class _Grower:
    draw: Draw
    values: list[Value] = field(default_factory=list)
    orders: list[Tensor] = field(default_factory=list)
    inputs: dict[str, Array] = field(default_factory=dict)
    used: set[Tensor] = field(default_factory=set)
    made: int = 0

    def grow(self) -> RandomGraph:
        self.tokens = self.draw.choice([1, 2, 5, 33])
        self.random = np.random.default_rng(self.draw.integer(0, 2**31 - 1))
        self.add_input((self.tokens, D))
        target = self.draw.integer(5, 60)
        steps = [getattr(self, name) for name in dir(self) if name.startswith("step_")]
        steps += [self.step_unary, self.step_binary, self.step_mul_mat] * 3
        nodes: list[Tensor] = []
        while len(nodes) < target:
            self.draw.choice(steps)()
            nodes = Graph([value.tensor for value in self.values] + self.orders).nodes
        return self.finish()

    def finish(self) -> RandomGraph:
        """Outputs: what nothing uses, and one result that something does."""
        made = [value for value in self.values if not value.tensor.is_leaf]
        kept = [value for value in made if value.tensor not in self.used]
        kept = list({value.tensor: value for value in [*kept, self.draw.choice(made)]}.values())
        candidates = [(value.tensor, value.coarse) for value in kept] + [(order, False) for order in self.orders]
        outputs = self.sound(candidates)
        graph = Graph([tensor for tensor, _ in outputs], phase=self.draw.choice([None, "prompt", "decode"]))
        return RandomGraph(graph, {name: self.inputs[name] for name in graph.inputs}, [coarse for _, coarse in outputs])

    def sound(self, outputs: list[tuple[Tensor, bool]]) -> list[tuple[Tensor, bool]]:
        """Those whose right answer is well defined; where none is, one that surely has one."""
        graph, coarse = Graph([tensor for tensor, _ in outputs]), [coarse for _, coarse in outputs]
        are_sound = well_defined(graph, {name: self.inputs[name] for name in graph.inputs}, coarse)
        found = [output for output, is_sound in zip(outputs, are_sound, strict=True) if is_sound]
        return found or [(ops.neg(self.values[0].tensor), False)]

    # -- leafs -----------------------------------------------------------------------------------------------------

    def name(self, kind: str) -> str:
        self.made += 1
        return f"{kind}.{self.made}.weight" if kind == "w" else f"{kind}.{self.made}"

    def numbers(self, *shape: int) -> Array:
        return (2 * self.random.random(shape) - 1).astype(np.float32)

    def add_input(self, shape: tuple[int, ...]) -> Value:
        x = graphrt.input(self.name("x"), shape)
        self.inputs[x.name] = self.numbers(*shape)
        self.values.append(Value(x, 1.0))
        return self.values[-1]

    def whole(self, array: Array, dtype: str = "i32") -> Tensor:
        """An input of whole numbers."""
        x = graphrt.input(self.name("ids"), array.shape, dtype)
        self.inputs[x.name] = array.astype(x.dtype.numpy)
        return x

    def weight(self, *shape: int, dtype: str = "f32") -> Tensor:
        """A weight, or now and then some rows of a larger one."""
        extra = self.draw.choice([0, 0, 0, 2])
        array = dtypes.from_f32(self.numbers(shape[0] + extra, *shape[1:]), dtypes.get(dtype))
        leaf = graphrt.weight(self.name("w"), array)
        return leaf[1 : 1 + shape[0]] if extra else leaf

    def vector(self, length: int) -> Tensor:
        """A weight of positive numbers."""
        return graphrt.weight(self.name("w"), np.abs(self.numbers(length)) + np.float32(0.5))

    def shared(self, make: Callable[[], Tensor], shape: tuple[int, ...], dtype: str) -> Tensor:
        """A weight; now and then one that another node reads already."""
        used = [src for value in self.values for src in value.tensor.srcs if src is not None and src.role == "weight"]
        fitting = [leaf for leaf in used if leaf.shape == shape and leaf.dtype.name == dtype]
        return self.draw.choice(fitting) if fitting and self.draw.boolean() else make()

    # -- picking and keeping ---------------------------------------------------------------------------------------

    def pick(self, fits: Callable[[Tensor], bool] = lambda x: True, *, fine: bool = False) -> Value:
        """A value made before that fits; a new input of [T, D] where there is none."""
        fitting = [value for value in self.values if fits(value.tensor) and not (fine and value.coarse)]
        unused = [value for value in fitting if value.tensor not in self.used]
        if unused and self.draw.integer(0, 3):
            return self.draw.choice(unused)
        return self.draw.choice(fitting) if fitting else self.add_input((self.tokens, D))

    def pick_rows(self, *, fine: bool = False) -> Value:
        """A value of [T, D], in f32."""
        return self.pick(lambda x: x.shape == (self.tokens, D) and x.dtype is dtypes.f32, fine=fine)

    def keep(self, tensor: Tensor, bound: float, *sources: Value, coarse: bool = False) -> Value:
        """Keep a result, clamped if it may be large."""
        self.used.update(source.tensor for source in sources)
        coarse = coarse or any(source.coarse for source in sources)
        coarse = coarse or (tensor.op is not None and tensor.op.tolerance_of(tensor) > COARSE)
        if bound > LARGE:
            tensor, bound = ops.clamp(tensor, min=-LARGE, max=LARGE), LARGE
        self.values.append(Value(tensor, bound, coarse))
        return self.values[-1]

    # -- elementwise -----------------------------------------------------------------------------------------------

    def step_unary(self) -> None:
        x = self.pick()
        record = self.draw.choice([ops.relu, ops.silu, ops.sigmoid, ops.tanh, ops.gelu, ops.softplus, ops.neg])
        self.keep(record(x.tensor), x.bound + 1, x)

    def step_steep(self) -> None:
        x = self.pick(fine=True)
        kind = self.draw.integer(0, 2)
        if kind == 0:
            self.keep(ops.exp(ops.clamp(x.tensor, min=-3.0, max=3.0)), 21, x)
        elif kind == 1:
            self.keep(ops.sqr(x.tensor), x.bound**2, x)
        else:
            self.keep(ops.sqrt(ops.scale(ops.sqr(x.tensor), bias=0.5)), x.bound + 1, x)

    def step_binary(self) -> None:
        x = self.pick()
        y = self.pick(lambda t: t.shape == x.tensor.shape and t.dtype is x.tensor.dtype)
        kind = self.draw.integer(0, 3)
        if kind == 0:
            self.keep(x.tensor + y.tensor, x.bound + y.bound, x, y)
        elif kind == 1 and not (x.coarse or y.coarse):
            self.keep(x.tensor * y.tensor, x.bound * y.bound, x, y)
        elif kind == 2 and not (x.coarse or y.coarse):
            self.keep(x.tensor - y.tensor, x.bound + y.bound, x, y)
        elif x.tensor.rank:
            self.keep(ops.div(x.tensor, self.vector(x.tensor.shape[-1])), 2 * x.bound, x)

    def step_scale(self) -> None:
        x = self.pick()
        self.keep(ops.scale(x.tensor, factor=self.draw.number(-2, 2), bias=self.draw.number(-1, 1)), 2 * x.bound + 1, x)

    def step_fill(self) -> None:
        x = self.pick(lambda t: t.is_dense)
        self.keep(ops.fill(x.tensor, value=self.draw.number(-1, 1)), 1, x)

    def step_glu(self) -> None:
        gate = self.pick(lambda t: t.shape[-1] % 2 == 0 and t.shape[-1] > 0, fine=True)
        record = self.draw.choice([ops.swiglu, ops.geglu, ops.reglu])
        if self.draw.boolean():
            self.keep(record(gate.tensor), gate.bound**2 + 1, gate)
        else:
            up = self.pick(lambda t: t.shape == gate.tensor.shape and t.dtype is gate.tensor.dtype, fine=True)
            self.keep(record(gate.tensor, up.tensor), gate.bound * up.bound + 1, gate, up)

    def step_norm(self) -> None:
        x = self.pick(lambda t: t.has_dense_rows and t.dtype is dtypes.f32, fine=True)
        width = x.tensor.shape[-1]
        vector = self.vector(width) if self.draw.boolean() else None
        self.keep(ops.rms_norm(x.tensor, vector, eps=0.1), 1.5 * width**0.5, x)

    def step_softmax(self) -> None:
        x = self.pick(lambda t: t.is_dense and t.rank >= 2, fine=True)
        y = self.keep(ops.soft_max(x.tensor, scale=0.5), 1, x)
        if self.draw.boolean():
            self.keep(ops.sum_rows(ops.sqr(y.tensor)), 1, y)

    # -- products --------------------------------------------------------------------------------------------------

    def step_mul_mat(self) -> None:
        x = self.pick(lambda t: t.rank >= 2 and t.has_dense_rows)
        width = x.tensor.shape[-1]
        dtype = self.draw.choice(MATRICES if width % 32 == 0 else ("f32", "f16"))
        rows = self.draw.choice([D, D, 16, 3])
        w = self.shared(lambda: self.weight(rows, width, dtype=dtype), (rows, width), dtype)
        self.keep(ops.mul_mat(w, x.tensor), width * x.bound, x)

    def step_mul_mat_transposed(self) -> None:
        x = self.pick(lambda t: t.rank == 2)
        w = self.weight(x.tensor.shape[-1], D, dtype=self.draw.choice(MATRICES))
        self.keep(ops.mul_mat_transposed(w, x.tensor), x.tensor.shape[-1] * x.bound, x)

    def step_scores(self) -> None:
        """The product of two results, as of queries and keys."""
        q, k = self.pick_rows(fine=True), self.pick_rows(fine=True)
        self.keep(ops.mul_mat(k.tensor, q.tensor), D * q.bound * k.bound, q, k)

    def step_experts(self) -> None:
        x, chosen = self.pick_rows(), self.chosen_experts()
        dtype = self.draw.choice(MATRICES)
        w = self.shared(lambda: self.weight(E, D, D, dtype=dtype), (E, D, D), dtype)
        y = self.keep(ops.mul_mat_id(w, dense(x).reshape(self.tokens, 1, D), chosen), D * x.bound, x)
        if self.draw.boolean():
            y = self.keep(ops.tanh(y.tensor), 1, y)
            w = self.shared(lambda: self.weight(E, D, D, dtype=dtype), (E, D, D), dtype)
            y = self.keep(ops.mul_mat_id(w, y.tensor, chosen), D, y)
        if self.draw.boolean():
            y = self.keep(ops.add_id(y.tensor, self.weight(E, D), chosen), y.bound + 1, y)
        weights = graphrt.weight(self.name("w"), self.numbers(self.tokens, U))
        self.keep(ops.weighted_sum(y.tensor, weights), U * y.bound, y)

    def chosen_experts(self) -> Tensor:
        """The experts of each token, [T, U]: given, or the best of scores that lie far apart."""
        far_apart = np.stack([self.random.permutation(E) for _ in range(self.tokens)]).astype(np.float32)
        if self.draw.boolean():
            return self.whole(far_apart[:, :U])
        scores = graphrt.input(self.name("scores"), (self.tokens, E))
        self.inputs[scores.name] = far_apart
        gates = ops.scale(scores, factor=0.5)
        if self.draw.boolean():
            order = ops.argsort(gates, descending=self.draw.boolean())
            chosen = order[:, :U]
        else:
            order = chosen = ops.top_k(gates, k=U)
        if self.draw.boolean():
            self.orders.append(order)
        return chosen

    # -- views, copies, rows ---------------------------------------------------------------------------------------

    def step_view(self) -> None:
        x = self.pick(lambda t: t.rank >= 2)
        kind, shape = self.draw.integer(0, 3), x.tensor.shape
        if kind == 0 and x.tensor.is_dense:
            self.keep(x.tensor.reshape(-1, shape[-1] // 2) if shape[-1] % 2 == 0 else x.tensor.reshape(-1), x.bound, x)
        elif kind == 1:
            y = ops.transpose(x.tensor) if self.draw.boolean() else x.tensor.permute(*reversed(range(len(shape))))
            self.keep(y, x.bound, x)
        elif kind == 2 and shape[0] > 1:
            first = self.draw.integer(0, shape[0] - 1)
            self.keep(x.tensor[first:], x.bound, x)
        elif shape[-1] > 1:
            self.keep(x.tensor[..., : shape[-1] // 2], x.bound, x)

    def step_heads(self) -> None:
        x = self.pick_rows()
        self.keep(dense(x).reshape(self.tokens, H, D // H), x.bound, x)

    def step_rows_again(self) -> None:
        """Anything of T·D elements as [T, D]."""
        x = self.pick(lambda t: t.size == self.tokens * D)
        self.keep(dense(x).reshape(self.tokens, D), x.bound, x)

    def step_copy(self) -> None:
        x = self.pick()
        self.keep(self.draw.choice([ops.cont, ops.dup])(x.tensor), x.bound, x)

    def step_cast(self) -> None:
        x = self.pick()
        dtype = self.draw.choice(["f32", "f16", "bf16"])
        self.keep(ops.cast(x.tensor, dtype=dtype), 1.01 * x.bound, x, coarse=dtype != "f32")

    def step_join(self) -> None:
        x = self.pick(lambda t: t.size < 4000)
        y = self.pick(lambda t: t.shape == x.tensor.shape and t.dtype is x.tensor.dtype)
        axis = self.draw.integer(0, x.tensor.rank - 1)
        self.keep(ops.concat(x.tensor, y.tensor, axis=axis), max(x.bound, y.bound), x, y)

    def step_repeat(self) -> None:
        x = self.pick(lambda t: t.size < 2000)
        self.keep(ops.repeat(x.tensor, shape=(2, *x.tensor.shape)), x.bound, x)

    def step_get_rows(self) -> None:
        x = self.pick(lambda t: t.rank == 2 and t.shape[0] > 0)
        ids = self.whole(self.random.integers(0, x.tensor.shape[0], (self.tokens,)))
        table = self.weight(7, D, dtype=self.draw.choice(MATRICES))
        if self.draw.boolean():
            self.keep(ops.get_rows(x.tensor, ids), x.bound, x)
        else:
            self.keep(ops.get_rows(table, self.whole(self.random.integers(0, 7, (self.tokens,)))), 1.1)

    # -- rope, caches, attention -----------------------------------------------------------------------------------

    def step_rope(self) -> None:
        x = self.pick(lambda t: t.rank == 3 and t.shape[0] == self.tokens and t.shape[-1] in (8, 32))
        if x.tensor.rank == 3:
            factors = self.vector(x.tensor.shape[-1] // 2) if self.draw.boolean() else None
            mode = self.draw.choice(["normal", "neox"])
            positions = self.whole(np.arange(self.tokens))
            self.keep(ops.rope(x.tensor, positions, factors, mode=mode), 1.5 * x.bound, x)

    def step_attention(self) -> None:
        cells = self.tokens + self.draw.integer(0, 40)
        q, k = self.pick_rows(fine=True), self.pick_rows(fine=True)
        at = self.whole(self.random.permutation(cells)[: self.tokens], self.draw.choice(["i32", "i64"]))
        dtype = self.draw.choice(CACHES)
        cache = graphrt.state(self.name("cache"), (cells, D), dtype)
        written = ops.set_rows(cache, k.tensor, at).reshape(cells, 1, D)
        position = np.full(cells, -1)
        position[self.inputs[at.name]] = np.arange(self.tokens)
        visible = [self.whole(position), self.whole(np.full(cells, 1), "i64")]
        heads = dense(q).reshape(self.tokens, 1, D)
        sinks = self.vector(1) if self.draw.boolean() else None
        y = ops.attention(
            heads,
            written,
            written[..., : self.draw.choice([D, D // 2 if dtype != "q8_0" else D])],
            self.whole(np.arange(self.tokens)),
            self.whole(np.zeros(self.tokens)),
            *visible,
            sinks,
            scale=1 / (D * max(1.0, q.bound * k.bound) ** 0.5),
        )
        self.keep(y, 1.1 * k.bound, q, k, coarse=dtype != "f32")

    def step_state(self) -> None:
        """Read a state, then write some of it with something made of what was read: the next run reads that."""
        memory = graphrt.state(self.name("memory"), (self.tokens, D))
        x = self.pick_rows()
        before = ops.scale(memory, factor=0.5)
        mixed = self.keep(before + ops.tanh(x.tensor), 2, x)
        first = self.draw.integer(0, self.tokens - 1)
        written = ops.cpy(memory[first:], mixed.tensor[first:])
        if self.draw.boolean():
            ids = self.whole(self.random.permutation(self.tokens - first))
            written = ops.set_rows(written, ops.neg(written), ids)
        self.keep(written, 2, mixed)

    def step_write_into_result(self) -> None:
        """Overwrite some rows of a fresh copy."""
        x, y = self.pick_rows(), self.pick_rows()
        target = ops.dup(x.tensor)
        if self.draw.boolean():
            ids = self.whole(self.random.permutation(self.tokens))
            self.keep(ops.set_rows(target, y.tensor, ids), max(x.bound, y.bound), x, y)
        else:
            first = self.draw.integer(0, self.tokens - 1)
            self.keep(ops.cpy(target[first:], y.tensor[first:]), y.bound, y)


def dense(x: Value) -> Tensor:
    """The value in dense memory, copied only if it is not."""
    return x.tensor if x.tensor.is_dense else ops.cont(x.tensor)
