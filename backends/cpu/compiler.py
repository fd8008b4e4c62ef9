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


@global_compiler_lock
def compile_object(kernel: Callable[[int, int, int], None], symbol: str, level: host.Level) -> bytes:
    """The object file of `kernel`, which exports it as the C function `void symbol(int64, int64, int64)`."""
    compiled = helpers.to_llvm(kernel, ARGUMENTS, types.void)
    module = llvm.parse_assembly(str(_wrapper(compiled.fndesc.llvm_func_name, symbol)))
    for each in _libraries(compiled.library):
        module.link_in(each)
    for function in module.functions:
        if not function.is_declaration and function.name != symbol:
            function.linkage = "internal"
            function.add_function_attribute("alwaysinline")
    machine = _target_machine(level)
    module.data_layout = str(machine.target_data)
    _optimise(module, machine)
    module.verify()
    return bytes(machine.emit_object(module))


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
    module.triple = llvm.get_process_triple()
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
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    usable = sorted(host.features() if level.name == "generic" else level.features)
    absent = sorted(host.features() - set(usable)) if level.name != "generic" else []
    described = ",".join([*(f"+{name}" for name in usable), *(f"-{name}" for name in absent)])
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(cpu=host.cpu_name(), features=described, opt=3, reloc="default", jit=True)


def _optimise(module: Any, machine: Any) -> None:
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    options.slp_vectorization = config.SLP_VECTORIZE != 0
    passes = llvm.create_pass_builder(machine, options)
    manager = passes.getModulePassManager()
    manager.run(module, passes)
