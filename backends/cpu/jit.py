"""Native functions: Python kernels compiled by Numba to object code, kept on disk, and loaded without compiling.

Numba turns the Python function into LLVM; from there on llvmlite optimises it, emits an object file, and links that
into the process. A warm start reads the object file only: about a millisecond per kernel, and no compiler is set up.
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
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from graphrt.backends.cpu import host
from graphrt.errors import KernelError

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

    @property
    def path(self) -> Path:
        """Where its object file is kept."""
        identity = [self.factory.__module__, self.factory.__qualname__, repr(self.constants), self.level.name]
        digest = hashlib.sha256(
            "\n".join([*identity, _fingerprint(), _source_hash(_source_file(self.factory))]).encode()
        )
        return cache_folder() / f"{self.factory.__name__}-{digest.hexdigest()[:32]}.o"

    @property
    def is_ready(self) -> bool:
        """Whether its address is known or its object file is on disk, so that no compilation is needed."""
        return self._address is not None or self.path.exists()

    @property
    def address(self) -> int:
        """The C pointer.

        Raises: KernelError if Numba or LLVM cannot compile the function.
        """
        if self._address is None:
            with _lock:
                if self._address is None:
                    self._address = self._load()
        return self._address

    def _load(self) -> int:
        code = _read(self.path)
        if code is None:
            code = self._compile()
            _write(self.path, code)
        return _link(code, _symbol(self.path))

    def _compile(self) -> bytes:
        from graphrt.backends.cpu.compiler import compile_object

        with host.use_level(self.level.name):
            try:
                return compile_object(self.factory(*self.constants), _symbol(self.path), self.level)
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
    key = (factory, constants, level.name)
    with _lock:
        return _functions.setdefault(key, Native(factory, constants, level))


def load_all(functions: Iterable[Native], progress: Progress | None = None) -> None:
    """Make every function ready to call; `progress(done, total, label)` is told of those that need compiling."""
    distinct = list(dict.fromkeys(functions))
    missing = [function for function in distinct if not function.is_ready]
    for number, function in enumerate(missing, 1):
        if progress is not None:
            progress(number, len(missing), function.label)
        _ = function.address
    for function in distinct:
        _ = function.address


def show_progress(done: int, total: int, label: str) -> None:
    """Tell a person at a terminal what is being compiled."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r\x1b[2Kcompiling CPU kernels {done}/{total}: {label}", end=end, file=sys.stderr, flush=True)


# ---- the cache on disk -----------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The folder of object files: $XDG_CACHE_HOME/graphrt/cpu, by default in ~/.cache (Windows: %LOCALAPPDATA%)."""
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    return (Path(base) if base else Path.home() / ".cache") / "graphrt" / "cpu"


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, path)
    except OSError:
        return


@cache
def _fingerprint() -> str:
    """What every kernel depends on: the compilers' versions and the processor."""
    versions = [metadata.version(name) for name in ("numba", "llvmlite")]
    return " ".join([*versions, sys.version, host.cpu_name(), *sorted(host.features())])


_IMPORTS = re.compile(r"from graphrt\.backends\.cpu(?:\.(\w+) import|\s+import\s+(\([^)]*\)|[^\n]*))")


@cache
def _source_hash(file: Path) -> str:
    """The hash of a kernel's source file and of the files of this backend that it imports, directly or not."""
    found, waiting = {}, [file, Path(__file__).with_name("compiler.py")]
    while waiting:
        source = waiting.pop()
        if source not in found and source.exists():
            found[source] = source.read_bytes()
            for module, names in _IMPORTS.findall(found[source].decode()):
                waiting += [Path(__file__).with_name(f"{name}.py") for name in re.findall(r"\w+", module or names)]
    digest = hashlib.sha256()
    for source in sorted(found, key=lambda each: each.name):
        digest.update(found[source])
    return digest.hexdigest()


def _source_file(factory: Callable[..., Kernel]) -> Path:
    file = inspect.getsourcefile(factory)
    if file is None or not os.path.exists(file):
        raise KernelError(f"[cpu] kernel factory {factory.__qualname__} is not in a file; put it into one")
    return Path(file)


def _symbol(path: Path) -> str:
    return "graphrt_" + path.stem.replace("-", "_")


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
