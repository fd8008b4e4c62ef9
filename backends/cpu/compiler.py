"""From a Python kernel to an object file: Numba infers types and writes LLVM, llvmlite optimises and emits it.

Imported only when a kernel is not in the disk cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock

from graphrt.backends.cpu import helpers, host

ARGUMENTS = (types.int64, types.int64, types.int64)

Function = Callable[[int, int, int], None]


def compile_object(kernel: Function, symbol: str, level: host.Level) -> bytes:
    """The object file of `kernel`, which exports it as the C function `void symbol(int64, int64, int64)`."""
    with global_compiler_lock:
        machine = _target_machine(level)
        return bytes(machine.emit_object(_optimised(kernel, symbol, level, machine)))


def compile_assembly(kernel: Function, symbol: str, level: host.Level) -> str:
    """What `compile_object` makes, as text."""
    with global_compiler_lock:
        machine = _target_machine(level)
        return str(machine.emit_assembly(_optimised(kernel, symbol, level, machine)))


def _optimised(kernel: Function, symbol: str, level: host.Level, machine: Any) -> Any:
    """The kernel and all that it calls as one module."""
    compiled = helpers.to_llvm(kernel, ARGUMENTS, types.void)
    module = llvm.parse_assembly(str(_wrapper(compiled.fndesc.llvm_func_name, symbol)))
    for each in [module, *_libraries(compiled.library)]:
        # Numba writes for this machine; nothing in its code but these two lines depends on that.
        each.triple, each.data_layout = level.machine.triple, str(machine.target_data)
        if each is not module:
            module.link_in(each)
    for function in module.functions:
        if not function.is_declaration and function.name != symbol:
            function.linkage = "internal"
            function.add_function_attribute("alwaysinline")
    _run_passes(module, machine)
    module.verify()
    return module


def _libraries(first: Any) -> list[Any]:
    """The modules of a kernel, the helpers it calls, the helpers they call, and so on."""
    found: dict[int, Any] = {}
    waiting = [first]
    while waiting:
        library = waiting.pop()
        if id(library) not in found:
            # Numba's own functions are complete; a kernel and its helpers are not, and stay usable for other kernels.
            found[id(library)] = library._get_module_for_linking() if library._finalized else library._final_module
            waiting += library._linking_libraries
    return [module.clone() for module in found.values()]


def _wrapper(name: str, symbol: str) -> ir.Module:
    """A module with the C function: it drops the status and the error pointer of Numba's calling convention."""
    module = ir.Module(symbol)
    word, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    inner_type = ir.FunctionType(ir.IntType(32), [pointer.as_pointer(), pointer.as_pointer(), word, word, word])
    inner = ir.Function(module, inner_type, name)
    outer = ir.Function(module, ir.FunctionType(ir.VoidType(), [word, word, word]), symbol)
    builder = ir.IRBuilder(outer.append_basic_block("entry"))
    result, error = builder.alloca(pointer), builder.alloca(pointer)
    builder.call(inner, [result, error, *outer.args])
    builder.ret_void()
    return module


def _target_machine(level: host.Level) -> Any:
    machine = level.machine
    if machine is host.here():
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    else:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    usable = machine.features if level.name == "generic" else level.features
    present = [f"+{name}" for name in sorted(usable)]
    absent = [f"-{name}" for name in sorted(machine.features - usable)]
    target = llvm.Target.from_triple(machine.triple)
    return target.create_target_machine(
        cpu=machine.cpu, features=",".join(present + absent), opt=3, reloc="default", jit=True
    )


def _run_passes(module: Any, machine: Any) -> None:
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    options.slp_vectorization = config.SLP_VECTORIZE != 0
    passes = llvm.create_pass_builder(machine, options)
    manager = passes.getModulePassManager()
    manager.run(module, passes)
