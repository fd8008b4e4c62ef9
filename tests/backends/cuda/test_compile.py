"""Every unit compiles for every architecture, spills nothing, and stays below its cap of registers."""

from __future__ import annotations

import pytest

from graphrt.backends.cuda import nvrtc, units
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.errors import KernelError

ARCHITECTURES = ("80", "86", "89", "90", "120")
OURS = {name: unit for name, unit in units.all_units().items() if unit.path.parent == units.KERNELS}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OURS)
def test_unit_compiles_without_spills(name: str, architecture: str):
    unit = OURS[name]
    binary = nvrtc.compile_kernels([unit.kernel(each) for each in unit.instances], architecture)
    assert binary.code[:4] == b"\x7fELF"
    for expression, symbol in binary.symbols.items():
        used = binary.resources[symbol]
        assert used.spill_bytes == 0, expression
        assert used.registers <= unit.registers, expression


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
