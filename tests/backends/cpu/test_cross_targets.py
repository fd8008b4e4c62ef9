"""Kernels compiled for processors that are not here, and read: their dot products, their registers, what they call."""

import re
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from graphrt import Graph, KernelError, Scheduler, Tensor, constant, dtypes, ops
from graphrt.backends.cpu import host, jit, registry, threads
from graphrt.backends.cpu.host import Machine
from graphrt.testing import Draw, normalised_error

SSE = {"sse2", "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt"}
AVX2 = frozenset(SSE | {"avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe"})
ARM = Machine("aarch64-unknown-linux-gnu", "neoverse-n1", frozenset({"neon", "dotprod", "fullfp16"}))
HASWELL = Machine("x86_64-unknown-linux-gnu", "haswell", AVX2)
ALDERLAKE = Machine("x86_64-unknown-linux-gnu", "alderlake", AVX2 | {"avxvnni"})
MACHINES = [ARM, HASWELL, ALDERLAKE]

DOT = {ARM: r"\tsdot\tv\d+\.4s, v\d+\.16b", HASWELL: r"\tvpmaddubsw\t.*%ymm", ALDERLAKE: r"\bvpdpbusd\t.*%ymm"}
STACK = {ARM: r"\[(?:sp|x29)\b", HASWELL: r"\(%r[sb]p\)", ALDERLAKE: r"\(%r[sb]p\)"}
CALLED = {
    ARM: r"\tbl?\t([A-Za-z_]\w*)|:abs_g\d\w*:([A-Za-z_]\w*)",
    HASWELL: r"\t(?:call|jmp)q?\t([A-Za-z_]\w*)|\tmovabsq\t\$([A-Za-z_]\w*)",
}
CALLED[ALDERLAKE] = CALLED[HASWELL]
# Every C library has these. What a compiler's own library would have to add (__extendhfsf2 …) is nowhere to be found.
C_LIBRARY = {"memcpy", "memset", "memmove", "exp", "sched_yield", "syscall"}


def leaf(*shape: int, dtype: str = "f32") -> Tensor:
    return Draw(lambda low, high: low).tensor(shape, dtypes.get(dtype), layout="dense")


def whole(*values: int, dtype: type = np.int32) -> Tensor:
    return constant("", np.array(values, dtype))


def attention(tokens: int) -> Tensor:
    """Two kv heads of 64 in f16, four queries for each."""
    cache, rows = leaf(512, 2, 64, dtype="f16"), whole(*range(tokens))
    seen = (rows, whole(*[0] * tokens), whole(*range(512)), whole(*[1] * 512, dtype=np.int64))
    return ops.attention(leaf(tokens, 8, 64), cache, cache, *seen, scale=0.125)


@cache
def assembly(machine: Machine, build: Callable[[], Tensor], first: int = 0) -> dict[str, str]:
    """What the kernels of a node, from the first of its calls on, become at a machine's best level, by their labels."""
    with host.use_level(machine.levels[0], machine):
        node = build()
        calls = registry.find(node.op).lower(node)[first:]
        return {function.label: function.assembly() for call in calls for function in call.functions}


def busiest_block(code: str, machine: Machine) -> list[str]:
    """The lines between two labels that hold the most dot products: the inner loop."""
    blocks = re.split(r"^[.\w$]+:.*$", code, flags=re.MULTILINE)
    block = max(blocks, key=lambda lines: len(re.findall(DOT[machine], lines)))
    return [line for line in block.splitlines() if re.match(r"\t[a-z{]", line)]


def calls_nothing_unknown(code: str, machine: Machine) -> bool:
    found = {name for names in re.findall(CALLED[machine], code) for name in names if name}
    assert found <= C_LIBRARY
    return True


PRODUCTS = {
    "q8_0 x 1": lambda: ops.mul_mat(leaf(64, 512, dtype="q8_0"), leaf(1, 512)),
    "q4_k x 1": lambda: ops.mul_mat(leaf(64, 512, dtype="q4_k"), leaf(1, 512)),
    "q8_0_r16 x 1": lambda: ops.mul_mat(leaf(64, 512, dtype="q8_0_r16"), leaf(1, 512)),
    "q4_k_r16 x 1": lambda: ops.mul_mat(leaf(64, 512, dtype="q4_k_r16"), leaf(1, 512)),
    "q4_0 x 512": lambda: ops.mul_mat(leaf(64, 512, dtype="q4_0"), leaf(512, 512)),
}


@pytest.mark.parametrize(
    ("machine", "product"),
    [
        (ARM, "q4_k x 1"),
        (ARM, "q4_k_r16 x 1"),
        *((machine, name) for machine in MACHINES for name in ("q8_0 x 1", "q8_0_r16 x 1", "q4_0 x 512")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.cpu,
)
def test_int8_products_use_the_dot_product_of_the_machine(machine, product):
    ((label, code),) = assembly(machine, PRODUCTS[product], first=-1).items()
    assert calls_nothing_unknown(code, machine)
    assert "%zmm" not in code
    loop = busiest_block(code, machine)
    dots = sum(bool(re.search(DOT[machine], line)) for line in loop)
    assert dots >= 8, label
    spills = sum(bool(re.search(STACK[machine], line)) for line in loop)
    assert spills < len(loop) / 3, f"{label}: {spills} of {len(loop)} instructions reach for the stack"


REST = {
    "preparing x": lambda: ops.mul_mat(leaf(64, 512, dtype="q8_0"), leaf(1, 512)),
    "attention of 1": lambda: attention(1),
    "attention of 64": lambda: attention(64),
    "mul_mat bf16": lambda: ops.mul_mat(leaf(64, 64, dtype="bf16"), leaf(1, 64)),
    "rms_norm": lambda: ops.rms_norm(leaf(4, 64), leaf(64)),
    "soft_max": lambda: ops.soft_max(leaf(4, 64)),
    "swiglu": lambda: ops.swiglu(leaf(4, 64), leaf(4, 64)),
    "rope": lambda: ops.rope(leaf(4, 2, 64), whole(0, 1, 2, 3)),
    "set_rows": lambda: ops.set_rows(leaf(8, 64, dtype="q8_0"), leaf(4, 64), whole(0, 1, 2, 3)),
    "top_k": lambda: ops.top_k(leaf(4, 64), k=4),
}


@pytest.mark.parametrize("family", REST)
def test_every_family_compiles_for_arm(family):
    kernels = assembly(ARM, REST[family])
    assert kernels
    assert all(calls_nothing_unknown(code, ARM) for code in kernels.values())


def test_attention_compiles_for_avx2():
    for code in assembly(HASWELL, REST["attention of 64"]).values():
        assert calls_nothing_unknown(code, HASWELL)
        assert "%zmm" not in code


@pytest.mark.parametrize("machine", [ARM, HASWELL], ids=lambda machine: machine.cpu)
def test_waiting_compiles_for_the_systems_own_calls(machine):
    with host.use_level(machine.levels[0], machine):
        code = jit.native(threads.walk_program).assembly()
    assert calls_nothing_unknown(code, machine)
    assert "syscall" in code
    assert ("hint\t#1" if machine is ARM else "pause") in code or "\tyield" in code


@pytest.mark.skipif(not HASWELL.runs_here, reason="this processor has no AVX2")
@pytest.mark.parametrize(("dtype", "columns"), [("q8_0", 1), ("q6_k", 1), ("q6_k_r16", 1), ("q4_0", 40)])
def test_products_agree_on_avx2_without_vnni(dtype, columns):
    draw = Draw(lambda low, high: (low + high) // 3)
    node = ops.mul_mat(
        draw.tensor((48, 512), dtypes.get(dtype), layout="dense"), draw.tensor((columns, 512), dtypes.f32)
    )
    expected = Scheduler(["reference"]).plan(Graph(node)).run()[0]
    with host.use_level("avx2", HASWELL):
        found = Scheduler(["cpu"], threads=2).plan(Graph(node)).run()[0]
    assert normalised_error(found, expected) < 1e-4


def test_what_is_for_another_machine_is_not_run():
    with host.use_level("neon", ARM):
        function = jit.native(threads.walk_program)
    with pytest.raises(KernelError, match="walk_program is for neoverse-n1, which is not this processor"):
        _ = function.address


def test_a_level_that_a_machine_cannot_run_is_refused():
    with (
        pytest.raises(KernelError, match='neoverse-n1 cannot run level "avx2"; it can run neon, generic'),
        host.use_level("avx2", ARM),
    ):
        pass
