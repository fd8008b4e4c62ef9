"""Functions that kernels call: `@helper`.

Numba compiles a helper once for each choice of argument types, as it does its own functions, but stops here at LLVM's
language: a kernel's module takes in the helpers that it calls, and is optimised, with them inlined, as one. Copying the
bodies in Numba (inline="always") took ten times as long; Numba's own calls emit machine code for each helper, which
changes the very module that is linked into the kernel later.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba.core import compiler, types
from numba.core.datamodel import models
from numba.core.errors import TypingError
from numba.core.imputils import lower_constant
from numba.core.registry import cpu_target
from numba.core.typing import signature
from numba.core.typing.typeof import typeof_impl
from numba.extending import register_model

from graphrt.backends.cpu import host


class Helper:
    """A function that kernels may call by position; what its intrinsics need as constants comes from its closure."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.bodies: dict[tuple[Any, ...], Any] = {}
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def signature_for(self, args: tuple[Any, ...]) -> Any:
        """The signature for arguments of these types; compiles the body where they, or the SIMD level, are new."""
        key = (host.level(), *args)
        if key not in self.bodies:
            self.bodies[key] = self._compile(args)
        return self.bodies[key]

    def _compile(self, args: tuple[Any, ...]) -> Any:
        result = to_llvm(self.function, args, None)
        found = signature(result.signature.return_type, *args)

        def call(context: Any, builder: Any, _: Any, values: Any) -> Any:
            context.active_code_library._linking_libraries.append(result.library)
            return context.call_internal(builder, result.fndesc, found, values)

        cpu_target.target_context.insert_func_defn([(call, self.key_for(args), args)])
        return found

    def key_for(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What Numba knows the body by."""
        return (self, host.level(), *args)


def helper(function: Callable[..., Any]) -> Helper:
    """Make a function callable from kernels."""
    return Helper(function)


def to_llvm(function: Callable[..., Any], args: tuple[Any, ...], returns: Any) -> Any:
    """Numba's result for a function, without machine code."""
    flags = compiler.Flags()
    flags.no_compile = True
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    target = cpu_target.target_context
    library = target.codegen().create_library(function.__qualname__)
    library._optimize_functions = lambda module: None  # the kernel's whole module will be
    return compiler.compile_extra(
        cpu_target.typing_context, target, function, args, returns, flags, locals={}, library=library
    )


class _HelperType(types.Callable):
    """The Numba type of one helper."""

    def __init__(self, made: Helper) -> None:
        self.helper = made
        super().__init__(f"Helper({made.__module__}.{made.__qualname__} {id(made)})")

    def get_call_type(self, context: Any, args: Any, kws: Any) -> Any:
        if kws:
            raise TypingError(f"helper {self.helper.__qualname__} takes arguments by position, got {sorted(kws)}")
        return self.helper.signature_for(tuple(types.unliteral(arg) for arg in args))

    def get_call_signatures(self) -> Any:
        return list(self.helper.bodies.values()), True

    def get_impl_key(self, sig: Any) -> Any:
        return self.helper.key_for(sig.args)


@typeof_impl.register(Helper)
def _typeof(value: Helper, context: Any) -> _HelperType:
    return _HelperType(value)


register_model(_HelperType)(models.OpaqueModel)


@lower_constant(_HelperType)
def _constant(context: Any, builder: Any, kind: Any, value: Helper) -> Any:
    return context.get_dummy_value()
