"""Native functions: Python kernels compiled by Numba to object code, kept on disk, and loaded without compiling.

Numba turns the Python function into LLVM; from there on llvmlite optimises it, emits an object file, and links that
into the process. A warm start reads the object file only: about a millisecond per kernel, and no compiler is set up.
Where many kernels are missing, worker processes compile them (workers.py).
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from graphrt.backends.cpu import host
from graphrt.errors import KernelError
from graphrt.kept import cache_root

Kernel = Callable[[int, int, int], None]
Progress = Callable[[int, int, str], None]

_lock = threading.RLock()
_functions: dict[tuple[Any, ...], Native] = {}


class Native:
    """A native function `void(int64, int64, int64)` made by a factory for one set of constants and one SIMD level.

    `address` compiles it, or loads it from the disk, on first use.
    """

    def __init__(self, factory: Callable[..., Kernel], constants: tuple[Any, ...], level: host.Level) -> None:
        self.factory, self.constants, self.level = factory, constants, level
        self._address: int | None = None

    @property
    def label(self) -> str:
        """How progress messages call it: the factory's name and its constants."""
        return " ".join([self.factory.__name__, *map(str, self.constants)])

    @cached_property
    def symbol(self) -> str:
        """The name of its C function, another one for whatever its code depends on."""
        identity = [self.factory.__module__, self.factory.__qualname__, repr(self.constants)]
        machine = self.level.machine
        identity += [self.level.name, machine.triple, machine.cpu, *sorted(machine.features)]
        text = "\n".join([*identity, _versions(), *map(_digest, _sources(_source_file(self.factory)))])
        return f"{self.factory.__name__}_{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    @property
    def source_bytes(self) -> int:
        """Length of the sources that its code depends on."""
        return sum(source.stat().st_size for source in _sources(_source_file(self.factory)))

    @property
    def path(self) -> Path:
        """Where its object file is kept."""
        return cache_folder() / f"{self.symbol}.o"

    @property
    def is_ready(self) -> bool:
        """Whether its address is known or its object file is on disk, so that no compilation is needed."""
        return self._address is not None or self.path.exists()

    @property
    def address(self) -> int:
        """The C pointer.

        Raises: KernelError if Numba or LLVM cannot compile the function, or it is for another machine.
        """
        if self._address is None:
            with _lock:
                code = _read(self.path)
                if code is None:
                    self.adopt(self.compile())
                else:
                    self._link(code)
        assert self._address is not None
        return self._address

    def adopt(self, code: bytes) -> None:
        """Take the object code that was made of it: keep it on disk, and link it into the process."""
        with _lock:
            self._link(code)
            _write(self.path, code)

    def _link(self, code: bytes) -> None:
        if not self.level.machine.runs_here:
            raise KernelError(f"[cpu] kernel {self.label} is for {self.level.machine.cpu}, which is not this processor")
        self._address = _link(code, self.symbol)

    def compile(self) -> bytes:
        """The object file, made anew.

        Raises: KernelError if Numba or LLVM cannot compile the function.
        """
        from graphrt.backends.cpu.compiler import compile_object

        return self._made_by(compile_object)

    def assembly(self) -> str:
        """The compiler's result to be read; of any machine's code, also of one that cannot run here.

        Raises: as `compile`.
        """
        from graphrt.backends.cpu.compiler import compile_assembly

        return self._made_by(compile_assembly)

    def _made_by(self, compiler: Callable[..., Any]) -> Any:
        with host.use_level(self.level.name, self.level.machine):
            try:
                return compiler(self.factory(*self.constants), self.symbol, self.level)
            except Exception as error:
                raise KernelError(f"[cpu] kernel {self.label} does not compile: {error}") from error


def native(factory: Callable[..., Kernel], *constants: Any) -> Native:
    """The native function of `factory(*constants)` at the present SIMD level; the same one each time.

    Args:
        factory: a module-level function that returns the kernel, `kernel(args, ith, nth)`; its closure may hold
            ints, strings and intrinsics, all determined by `constants`.
        constants: ints, strings, bools, None, or tuples of them.
    """
    level = host.level()
    key = (factory, constants, level)
    with _lock:
        return _functions.setdefault(key, Native(factory, constants, level))


def load_all(functions: Iterable[Native], progress: Progress | None = None) -> int:
    """Make every function ready to call; `progress(done, total, label)` is told of those that need compiling.

    Returns: how many functions there are.
    Raises: KernelError if one does not compile.
    """
    distinct = list(dict.fromkeys(functions))
    missing = [function for function in distinct if not function.is_ready]
    if missing:
        _compile_all(missing, progress or (lambda done, total, label: None))
    for function in distinct:
        _ = function.address
    return len(distinct)


def _compile_all(missing: list[Native], progress: Progress) -> None:
    from graphrt.backends.cpu import workers

    total, done = len(missing), 0
    progress(done, total, missing[0].label)
    for function, code in workers.compile_all(missing):
        function.adopt(code)
        done += 1
        progress(done, total, function.label)


def show_progress(done: int, total: int, label: str) -> None:
    """Tell a person at a terminal what is being compiled, on a line that vanishes in the end."""
    if sys.stderr.isatty():
        text = f"compiling CPU kernels {done}/{total}: {label}" if done < total else ""
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)


# ---- the cache on disk -----------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The folder of object files."""
    return cache_root() / "cpu"


DIGEST_BYTES = 32


def _read(path: Path) -> bytes | None:
    """The object code in a file; None where there is none, or it is damaged, which LLVM would not survive."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, code = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    """Write the file whole or not at all, beside any other process that does the same. No cache is no error."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        file, partial = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(hashlib.sha256(code).digest() + code)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise


@cache
def _versions() -> str:
    """The compilers."""
    return " ".join([*(metadata.version(name) for name in ("numba", "llvmlite")), sys.version])


_IMPORTS = re.compile(r"from graphrt\.backends\.cpu(?:\.(\w+) import|\s+import\s+(\([^)]*\)|[^\n]*))")
_WITHOUT_EFFECT = {"jit.py", "registry.py"}  # of what every kernel's file imports: they change no code


@cache
def _sources(file: Path) -> tuple[Path, ...]:
    """A kernel's source file, and the files of this backend that it imports, directly or not."""
    found, waiting = {file}, [file, Path(__file__).with_name("compiler.py")]
    while waiting:
        source = waiting.pop()
        found.add(source)
        waiting += [each for each in _imported(source) if each not in found]
    return tuple(sorted(found, key=lambda each: each.name))


@cache
def _digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


@cache
def _imported(source: Path) -> tuple[Path, ...]:
    """The files of this backend that a source file imports from."""
    names = []
    for module, several in _IMPORTS.findall(source.read_text(encoding="utf-8")):
        names += re.findall(r"\w+", module or several)
    paths = [Path(__file__).with_name(f"{name}.py") for name in names]
    return tuple(path for path in paths if path.exists() and path.name not in _WITHOUT_EFFECT)


def _source_file(factory: Callable[..., Kernel]) -> Path:
    file = inspect.getsourcefile(factory)
    if file is None or not os.path.exists(file):
        raise KernelError(f"[cpu] kernel factory {factory.__qualname__} is not in a file; put it into one")
    return Path(file)


# ---- linking into the process ----------------------------------------------------------------------------------------


@cache
def _engine() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


def _link(code: bytes, symbol: str) -> int:
    import llvmlite.binding as llvm

    engine = _engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = int(engine.get_function_address(symbol))
    if not address:
        raise KernelError(f"[cpu] object code holds no {symbol}; remove {cache_folder()} and run again")
    return address
