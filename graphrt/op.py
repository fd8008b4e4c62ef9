"""The op record: everything that is known of an op, in one place, and the registry that holds one record per name.

@op(inplace=["x"])
def silu(x: Tensor) -> Meta:              # the shape rule; calling the op checks and builds a node
    ...
@silu.reference                           # NumPy semantics: arrays in, array out
@silu.cost                                # FLOPs and bytes, where the default is wrong
@silu.cases                               # draws of arguments, for graphrt.testing.check
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from graphrt.dtypes import Array, DType
from graphrt.errors import GraphError
from graphrt.tensor import Shape, Tensor

if TYPE_CHECKING:
    from graphrt.testing import Draw

Layout = Literal["any", "rows", "dense", "interleaved"]


@dataclass(frozen=True)
class Meta:
    """What a shape rule says of a result.

    Args:
        dtype, shape: of the result.
        strides, offset: of a view, in bytes, the offset from its source's first element; dense where None.
    """

    dtype: DType
    shape: Shape
    strides: Shape | None = None
    offset: int = 0


@dataclass(frozen=True)
class Cost:
    """Work of one node: operations, bytes moved, and the batch that the offload rule compares.

    Args:
        flops: floating-point operations.
        nbytes: bytes read and written.
        batch: rows that meet the weight.
        active: share of the weight that each of those rows meets: experts used / experts in all, else 1.
    """

    flops: int
    nbytes: int
    batch: int
    active: float = 1.0


def require(condition: bool, message: str) -> None:
    """Raise GraphError with that message unless the condition holds."""
    if not condition:
        raise GraphError(message)


# A result between two 16-bit numbers may be rounded to either: a kernel in f32 and a reference in f64 differ there.
_ROUNDING = {"f16": 2.0**-20, "bf16": 2.0**-14}


class Op:
    """One op: its name, arguments, shape rule, layout needs, cost, reference and cases; calling it builds a node."""

    def __init__(
        self,
        rule: Callable[..., Meta],
        *,
        name: str | None = None,
        kind: Literal["compute", "view", "write"] = "compute",
        inplace: Iterable[str] = (),
        layout: dict[str, Layout] | None = None,
        tolerance: float | Callable[[Tensor], float] = 1e-7,
    ) -> None:
        self.rule = rule
        self.name = name or rule.__name__.rstrip("_")
        self.kind = kind
        self.__doc__ = rule.__doc__
        self.__module__ = rule.__module__
        self.tensors, self.optional, self.params = _signature(self.name, rule)
        self.inplace = tuple(self.tensors.index(argument) for argument in inplace)
        self.layout = layout or {}
        self._tolerance = tolerance
        self._reference: Callable[..., Array] | None = None
        self._cost: Callable[[Tensor], Cost] | None = None
        self._cases: Callable[[Draw], Tensor] | None = None

    @property
    def origin(self) -> str:
        return f"{self.rule.__module__}.{self.rule.__qualname__}"

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __call__(self, *tensors: Tensor | None, **keywords: Any) -> Tensor:
        srcs, params = self._bind(tensors, keywords)
        self._check_layout(srcs)
        meta = self.rule(*srcs, **params)
        target = srcs[0] if self.kind != "compute" else None
        node = Tensor(
            "",
            meta.dtype,
            meta.shape,
            strides=meta.strides,
            op=self,
            srcs=srcs,
            params=params,
            view_of=target,
            offset=meta.offset,
        )
        if self.kind == "view" and target is not None:
            _check_view(self.name, node, target)
        return node

    def reference(self, function: Callable[..., Array]) -> Callable[..., Array]:
        """Attach the NumPy semantics: takes the sources' arrays and the params, returns the result's array."""
        self._reference = function
        return function

    def cost(self, function: Callable[[Tensor], Cost]) -> Callable[[Tensor], Cost]:
        """Attach the cost of a node."""
        self._cost = function
        return function

    def cases(self, function: Callable[[Draw], Tensor]) -> Callable[[Draw], Tensor]:
        """Attach the maker of test cases: draws arguments and returns a node of this op."""
        self._cases = function
        return function

    def evaluate(self, node: Tensor, arrays: list[Array | None]) -> Array:
        """The reference's result for a node, given its sources' arrays."""
        if self._reference is None:
            raise GraphError(f"[{self.name}] has no NumPy reference; attach one with @{self.name}.reference")
        # Infinities and NaN are results like others, as in native kernels: no warnings about them.
        with np.errstate(all="ignore"):
            return self._reference(*arrays, **node.params)

    def cost_of(self, node: Tensor) -> Cost:
        """The cost of a node: as attached, or one operation an element and every byte once."""
        if self._cost is not None:
            return self._cost(node)
        moved = node.nbytes + sum(src.nbytes for src in node.srcs if src is not None)
        return Cost(flops=node.size, nbytes=moved, batch=node.size // node.shape[-1] if node.shape and node.size else 0)

    def tolerance_of(self, node: Tensor) -> float:
        """The normalised mean squared error that a kernel may have, at least one step of a 16-bit result."""
        declared = self._tolerance(node) if callable(self._tolerance) else self._tolerance
        return max(declared, _ROUNDING.get(node.dtype.name, 0.0)) if declared else 0.0

    def draw_case(self, draw: Draw) -> Tensor:
        """One test case: a node of this op over drawn arguments."""
        if self._cases is None:
            raise GraphError(f"[{self.name}] has no cases to draw; attach a function with @{self.name}.cases")
        return self._cases(draw)

    def _check_layout(self, srcs: tuple[Tensor | None, ...]) -> None:
        for argument, src in zip(self.tensors, srcs, strict=True):
            need = self.layout.get(argument, "any")
            if src is not None and (
                (need == "rows" and not src.has_dense_rows) or (need == "dense" and not src.is_dense)
            ):
                raise GraphError(
                    f"[{self.name}] {argument} must have dense {'rows' if need == 'rows' else 'memory'}, "
                    f"got {src!r} with strides {list(src.strides)}; wrap it in ops.cont"
                )
            if src is not None and src.dtype.rows > 1 and need != "interleaved" and self.kind != "view":
                raise GraphError(
                    f"[{self.name}] {argument} is {src!r}, whose rows are side by side for products; load it as "
                    f"{src.dtype.plain.name} (without --repack, or repack=False)"
                )

    def _bind(
        self, tensors: tuple[Tensor | None, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Tensor | None, ...], dict[str, Any]]:
        given: dict[str, Tensor | None] = dict(zip(self.tensors, tensors, strict=False))
        if len(tensors) > len(self.tensors):
            raise GraphError(
                f"[{self.name}] takes {len(self.tensors)} tensors ({', '.join(self.tensors)}), got {len(tensors)}"
            )
        params = dict(self.params)
        for key, value in keywords.items():
            if key in self.tensors and key not in given:
                given[key] = value
            elif key in params:
                params[key] = value
            else:
                known = ", ".join([*self.tensors, *self.params])
                raise GraphError(f'[{self.name}] has no argument "{key}", or it is given twice; arguments: {known}')
        for argument in self.tensors:
            value = given.setdefault(argument, None)
            if not isinstance(value, Tensor) and not (value is None and argument in self.optional):
                raise GraphError(
                    f"[{self.name}] {argument} must be a Tensor, got {value!r}; wrap data with graphrt.constant"
                )
        missing = [key for key, value in params.items() if value is inspect.Parameter.empty]
        require(not missing, f"[{self.name}] needs {', '.join(missing)}")
        return tuple(given[argument] for argument in self.tensors), {k: _frozen(v) for k, v in params.items()}


_REGISTRY: dict[str, Op] = {}
_BUILT_IN = "graphrt.ops"


@overload
def op(rule: Callable[..., Meta], /) -> Op: ...
@overload
def op(
    *,
    name: str | None = None,
    kind: Literal["compute", "view", "write"] = "compute",
    inplace: Iterable[str] = (),
    layout: dict[str, Layout] | None = None,
    tolerance: float | Callable[[Tensor], float] = 1e-7,
) -> Callable[[Callable[..., Meta]], Op]: ...
def op(rule: Callable[..., Meta] | None = None, /, **options: Any) -> Op | Callable[[Callable[..., Meta]], Op]:
    """Declare an op from its shape rule, and register it.

    Args:
        name: the op's name, else the function's; outside graphrt it carries a prefix, as "acme.softcap".
        kind: "compute"; "view" (costs nothing, shares the first source's memory); "write" (writes into the first
            source's memory and returns it as the tensor that later nodes read).
        inplace: tensor arguments whose memory the result may take over, element for element, if nothing reads it later.
        layout: argument -> "rows" (last axis dense) or "dense"; "any" where not named, which "interleaved" is too, for
            products' weights: no other compute op takes interleaved rows.
        tolerance: normalised mean squared error that a kernel may have against the reference, or a function of a node.
    Raises: GraphError if another op has the name, or a prefix is missing.
    """
    if rule is None:
        return lambda function: _register(Op(function, **options))
    return _register(Op(rule))


def find(name: str) -> Op:
    """The op of that name.

    Raises: GraphError if there is none.
    """
    if name not in _REGISTRY:
        importlib.import_module(_BUILT_IN)
    if name not in _REGISTRY:
        raise GraphError(f'[op] no op is called "{name}"; known: {", ".join(sorted(_REGISTRY))}')
    return _REGISTRY[name]


def registered() -> dict[str, Op]:
    """Every registered op by name, the built-in ones included."""
    importlib.import_module(_BUILT_IN)
    return dict(_REGISTRY)


def _register(record: Op) -> Op:
    built_in = record.rule.__module__.startswith(_BUILT_IN)
    if not built_in and "." not in record.name:
        raise GraphError(
            f'[op] "{record.name}" from {record.rule.__module__} needs a prefix: @op(name="acme.{record.name}")'
        )
    other = _REGISTRY.get(record.name)
    # The same function defined once more (a notebook cell run twice, a module reloaded) replaces its record.
    if other is not None and other.origin != record.origin:
        raise GraphError(
            f'[op] "{record.name}" is defined by {other.origin} and again by {record.origin}; rename one of them'
        )
    _REGISTRY[record.name] = record
    return record


def _signature(name: str, rule: Callable[..., Meta]) -> tuple[tuple[str, ...], frozenset[str], dict[str, Any]]:
    tensors, optional, params = [], set(), {}
    for parameter in inspect.signature(rule).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            params[parameter.name] = parameter.default
        elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            tensors.append(parameter.name)
            if parameter.default is None:
                optional.add(parameter.name)
        else:
            raise GraphError(f"[{name}] an op takes tensors by position and params by keyword; {parameter} is neither")
    return tuple(tensors), frozenset(optional), params


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value


def _check_view(name: str, node: Tensor, source: Tensor) -> None:
    """A view must lie inside its source by true extent: its last byte, not its dense size, is compared."""
    end = node.offset - source.offset + node.extent
    require(
        node.size == 0 or (node.offset >= source.offset and end <= source.extent and min(node.strides, default=0) >= 0),
        f"[{name}] the view {list(node.shape)} with strides {list(node.strides)} at byte {node.offset - source.offset} "
        f"ends at byte {end}; {source!r} ends at {source.extent}",
    )
