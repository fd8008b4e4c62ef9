"""CUDA C++ to machine code by NVRTC, NVIDIA's compiler as a library. It needs no GPU and no driver.

CuPy's own call of it asks the driver for the architecture, so the library is called through ctypes here.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from graphrt.backends.cuda.units import KERNELS, Kernel, unit
from graphrt.errors import KernelError

REMEDY = "install graphrt[cuda12] or graphrt[cuda13]"


@dataclass(frozen=True)
class Resources:
    """What ptxas says of one kernel: registers of a thread, bytes that it spills, bytes of static shared memory.

    Args:
        waits_added: whether it made products by warpgroups wait, which are not asynchronous then.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    waits_added: bool


@dataclass(frozen=True)
class Binary:
    """A compiled unit.

    Args:
        code: the cubin.
        symbols: the name in it of each expression.
        resources: by symbol.
    """

    code: bytes
    symbols: dict[str, str]
    resources: dict[str, Resources]


@cache
def _library() -> ctypes.CDLL:
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        library = ctypes.CDLL(load_nvidia_dynamic_lib("nvrtc").abs_path)
    except Exception as error:  # the finder has exceptions of its own for every way to miss a library
        raise KernelError(f"[cuda] NVRTC cannot be loaded: {error}; {REMEDY}") from error
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


@cache
def include_folders() -> tuple[Path, ...]:
    """Where NVIDIA's headers are.

    Raises: KernelError if they are not installed.
    """
    found = [_header_folder(name) for name in ("cudart", "nvcc", "cccl")]
    folders = tuple(dict.fromkeys(Path(folder) for folder in found if folder))
    if not folders:
        raise KernelError(f"[cuda] the CUDA headers are not installed; {REMEDY}")
    return folders


def _header_folder(component: str) -> str | None:
    """The folder of a component's headers; releases of the finder differ in which they know and how they say no."""
    with suppress(Exception):
        from cuda.pathfinder import find_nvidia_header_directory

        return find_nvidia_header_directory(component)
    return None


@cache
def version() -> tuple[int, int]:
    """The compiler's version.

    Raises: KernelError if the library cannot be loaded.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def compile_kernels(kernels: Sequence[Kernel], architecture: str) -> Binary:
    """Compile instances of one unit.

    Args:
        architecture: "80", "90" …, for which a unit may have its own: "90a" for "90".
    Raises: KernelError with the compiler's words.
    """
    path, library = unit(kernels[0].unit).path, _library()
    program = ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(ctypes.byref(program), path.read_bytes(), path.name.encode(), 0, None, None))
    try:
        expressions = [kernel.expression for kernel in kernels]
        for expression in expressions:
            _check(library.nvrtcAddNameExpression(program, expression.encode()))
        options = [option.encode() for option in _options(unit(kernels[0].unit).architecture or architecture)]
        failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = _text(program, "ProgramLog")
        if failed:
            raise KernelError(f"[cuda] {path.name} does not compile for sm_{architecture}:\n{log}")
        symbols = {expression: _symbol(program, expression) for expression in expressions}
        return Binary(_bytes(program, "CUBIN"), symbols, _resources(log))
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _options(architecture: str) -> list[str]:
    folders = [KERNELS, *include_folders()]
    plain = ["-std=c++17", "--device-as-default-execution-space", "--ptxas-options=-v", "-lineinfo"]
    return [f"-arch=sm_{architecture}", *plain, *(f"-I{folder}" for folder in folders)]


def _symbol(program: ctypes.c_void_p, expression: str) -> str:
    name = ctypes.c_char_p()
    _check(_library().nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(name)))
    assert name.value is not None
    return name.value.decode()


def _bytes(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    room = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, room))
    return room.raw


def _text(program: ctypes.c_void_p, what: str) -> str:
    return _bytes(program, what).rstrip(b"\0").decode(errors="replace")


_ENTRY = re.compile(r"Compiling entry function '(\S+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_ADDED = re.compile(r"(?:injected|serialized) .* in (?:the )?function '(\S+)'")
_REGISTERS = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


def _resources(log: str) -> dict[str, Resources]:
    """What ptxas wrote into the log, by kernel."""
    found: dict[str, Resources] = {}
    symbol, spills, waiting = "", 0, set(_ADDED.findall(log))
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            symbol, spills = match[1], 0
        elif match := _SPILLS.search(line):
            spills = int(match[1]) + int(match[2])
        elif (match := _REGISTERS.search(line)) and symbol:
            found[symbol] = Resources(int(match[1]), spills, int(match[2] or 0), symbol in waiting)
    return found


def _check(code: int) -> None:
    if code:
        raise KernelError(f"[cuda] NVRTC: {_library().nvrtcGetErrorString(code).decode()}")
