"""Every unit compiles for every architecture, or its own, spills nothing, and stays below its cap of registers."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphrt.backends.cuda import nvrtc, units
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.errors import KernelError

ARCHITECTURES = ("80", "86", "89", "90", "120")
OURS = {name: unit for name, unit in units.all_units().items() if unit.path.parent == units.KERNELS}
TARGETS = [
    (name, architecture)
    for name, unit in OURS.items()
    for architecture in ([unit.architecture] if unit.architecture else ARCHITECTURES)
]
HERE = Path(__file__).parent


@pytest.mark.parametrize(("name", "architecture"), TARGETS)
def test_unit_compiles_without_spills(name: str, architecture: str):
    unit = OURS[name]
    binary = nvrtc.compile_kernels([unit.kernel(each) for each in unit.instances], architecture)
    assert binary.code[:4] == b"\x7fELF"
    for expression, symbol in binary.symbols.items():
        used = binary.resources[symbol]
        assert used.spill_bytes == 0, expression
        assert used.registers <= unit.registers, expression
        assert not used.waits_added, expression


def test_waits_that_the_compiler_adds_are_told():
    """Touching accumulators between products by warpgroups costs all that they win."""
    kernel = units.Unit("planted_touch", ["touch"], architecture="90a", folder=HERE).kernel("touch")
    (used,) = nvrtc.compile_kernels([kernel], "90").resources.values()
    assert used.waits_added


def test_a_compile_error_is_told_with_the_compilers_words(tmp_path):
    (tmp_path / "wrong.cu").write_text("__global__ void f() { undeclared(); }")
    kernel = units.Unit("wrong", ["f"], folder=tmp_path).kernel("f")
    with pytest.raises(KernelError, match=r'wrong.cu does not compile for sm_80:\n.*"undeclared" is undefined'):
        nvrtc.compile_kernels([kernel], "80")
    with pytest.raises(KernelError, match=r"(?s)wrong.cu does not compile for the CPU:.*undeclared"):
        ShimDevice().load([kernel])


def test_an_instance_that_is_not_declared_is_refused():
    with pytest.raises(KernelError, match=r"elementwise.cu declares no instance binary<pow>; add it"):
        units.all_units()["elementwise"].kernel("binary<pow>")
