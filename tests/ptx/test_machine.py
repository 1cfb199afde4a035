"""The checker itself, on kernels of a few lines: what is right passes, and each fault is named."""

from __future__ import annotations

import contextlib
import re
import struct

import numpy as np
import pytest
import torch

from . import machine, warps
from .faults import Faults, Stopped
from .memory import Memory
from .parse import kernels, short

HEAD = """
.visible .entry probe(
	.param .u64 probe_param_0
)
{
	.reg .pred %p<4>;
	.reg .b32 %r<16>;
	.reg .b64 %rd<16>;
	ld.param.u64 %rd1, [probe_param_0];
	cvta.to.global.u64 %rd2, %rd1;
	mov.u32 %r1, %tid.x;
	shl.b32 %r2, %r1, 2;
	mov.u32 %r3, memory;
	add.s32 %r4, %r3, %r2;
	cvt.u64.u32 %rd3, %r2;
	add.s64 %rd4, %rd2, %rd3;
	ld.global.u32 %r5, [%rd4];
	setp.lt.u32 %p1, %r1, 16;
	mov.u32 %r10, -1;
	mov.u32 %r11, 31;
"""


def run(body: str, threads: int = 64, shared: int = 256) -> tuple[np.ndarray, list[str]]:
    """64 integers 0, 1, ... after one block, and what was found."""
    values, faults = torch.arange(64, dtype=torch.int32), Faults()
    memory = Memory(faults)
    argument = struct.pack("<q", memory.address(values))
    program = machine.Program(kernels(f"{HEAD}{body}\n\tret;\n}}\n")["probe"])
    with contextlib.suppress(Stopped):
        machine.launch(program, 1, threads, shared, [argument], memory, faults)
    return values.numpy(), [what for _, what, _ in faults.found]


REVERSE = """
	st.shared.u32 [%r4], %r5;
	{sync};
	sub.s32 %r6, {last}, %r2;
	add.s32 %r6, %r6, %r3;
	ld.shared.u32 %r7, [%r6];
	st.global.u32 [%rd4], %r7;
"""


def test_a_barrier_orders_a_block():
    values, found = run(REVERSE.format(sync="bar.sync 0", last=252))
    assert found == [] and (values == np.arange(64)[::-1]).all()


@pytest.mark.parametrize("sync", ["mov.u32 %r9, 0", "bar.warp.sync -1"])
def test_without_one_there_is_a_race(sync):
    assert "race: read after write" in run(REVERSE.format(sync=sync, last=252))[1]


def test_a_warp_is_ordered_by_its_own_barrier():
    assert run(REVERSE.format(sync="bar.warp.sync -1", last=124), threads=32)[1] == []
    assert run(REVERSE.format(sync="mov.u32 %r9, 0", last=124), threads=32)[1] == ["race: read after write"]


COPY = """
	cp.async.ca.shared.global [%r4], [%rd4], 4;
	cp.async.commit_group;
	{wait};
	{sync};
	xor.b32 %r6, %r2, 4;
	add.s32 %r6, %r6, %r3;
	ld.shared.u32 %r7, [%r6];
	st.global.u32 [%rd4], %r7;
"""


@pytest.mark.parametrize("wait", ["cp.async.wait_group 0", "cp.async.wait_all"])
def test_a_copy_arrives_when_it_is_waited_for(wait):
    values, found = run(COPY.format(wait=wait, sync="bar.sync 0"))
    assert found == [] and (values == (np.arange(64) ^ 1)).all()


@pytest.mark.parametrize("wait", ["cp.async.wait_group 1", "mov.u32 %r9, 0"])
def test_a_copy_that_is_not_waited_for_has_not_arrived(wait):
    assert "reads what nobody has written" in run(COPY.format(wait=wait, sync="bar.sync 0"))[1]


def test_a_copy_is_another_threads_after_a_barrier_alone():
    found = run(COPY.format(wait="cp.async.wait_all", sync="mov.u32 %r9, 0"))[1]
    assert found == ["race: read after write"]


def test_a_copy_overwrites_nothing_that_is_read():
    again = "\n\tcp.async.ca.shared.global [%r4], [%rd4], 4;"
    assert "race: write after read" in run(COPY.format(wait="cp.async.wait_all", sync="bar.sync 0") + again)[1]


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("st.global.u32 [%rd4+4], %r5;", "out of bounds"),
        ("ld.global.u32 %r6, [%rd4+-4];", "out of bounds"),
        ("st.shared.u32 [%r4+4], %r5;", "out of bounds"),
        ("ld.global.u32 %r6, [%rd3];", "out of bounds: no buffer"),
        ("ld.global.u64 %rd5, [%rd4];", "misaligned"),
        ("ld.shared.u32 %r6, [%r4];", "reads what nobody has written"),
        ("st.shared.u32 [%r3], %r5;", "race: several lanes write one word"),
        ("st.global.u32 [%rd2], %r5;", "several lanes write one place"),
        ("add.s32 %r6, %r9, %r9;", "reads register %r9, which nobody has written"),
        ("mov.u32 %r6, %clock;", "reads register %clock, which nobody has written"),
        ("atom.global.add.u32 %r6, [%rd4], %r5;", "an instruction that tests/ptx does not know"),
        ("@%p1 bar.sync 0;", "threads wait at different places, and some have ended"),
        ("@%p1 bar.warp.sync -1;", "threads wait at different places, and some have ended"),
        ("@%p1 shfl.sync.bfly.b32 %r6|%p2, %r5, 1, %r11, %r10;", "threads wait at different places, and some have"),
        ("shfl.sync.bfly.b32 %r6|%p2, %r5, 1, %r11, %r1;", "not with all lanes"),
        ("@%p1 bra $L1;\n\tbar.sync 0;\n\tbra $L2;\n$L1:\n\tbar.sync 0;\n$L2:", "threads wait at different places"),
        (
            "@%p1 mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%rd5, %rd6}, {%rd1}, {%rd1}, {%rd1, %rd1};",
            "threads wait at different places, and some have ended",
        ),
    ],
)
def test_faults_are_named(body, fault):
    assert any(what.startswith(fault) for what in run(f"\t{body}\n")[1]), run(f"\t{body}\n")[1]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("bfe.u32 %r6, %r5, 1, 3", lambda n: (n >> 1) & 7),
        ("bfe.u32 %r6, %r5, 2, 40", lambda n: n >> 2),
        ("shl.b32 %r6, %r5, 33", lambda n: 0 * n),
        ("sub.s32 %r6, 5, %r5;\n\tshr.s32 %r6, %r6, 40", lambda n: -(n > 5).astype(int)),
        ("sub.s32 %r6, 5, %r5;\n\tdiv.s32 %r6, %r6, 3", lambda n: np.trunc((5 - n) / 3)),
        ("sub.s32 %r6, 5, %r5;\n\trem.s32 %r6, %r6, 3", lambda n: np.fmod(5 - n, 3)),
        ("mad.lo.s32 %r6, %r5, %r5, -1", lambda n: n * n - 1),
        ("selp.b32 %r6, %r5, 7, %p1", lambda n: np.where(n < 16, n, 7)),
        ("mov.b64 %rd5, {%r5, %r1};\n\tshr.u64 %rd5, %rd5, 32;\n\tcvt.u32.u64 %r6, %rd5", lambda n: n),
    ],
)
def test_arithmetic(statement, expected):
    values, found = run(f"\t{statement};\n\tst.global.u32 [%rd4], %r6;\n")
    assert found == [] and (values == expected(np.arange(64))).all()


def test_a_kernel_that_does_not_end_is_stopped(monkeypatch):
    monkeypatch.setattr(machine, "MOST_STEPS", 1000)
    assert run("$L1:\n\tbra $L1;\n")[1] == ["does not end"]


def test_lanes_that_part_meet_again():
    body = "@%p1 bra $L1;\n\tadd.s32 %r5, %r5, 100;\n\tbra $L2;\n$L1:\n\tadd.s32 %r5, %r5, 200;\n$L2:\n"
    values, found = run(f"\t{body}\tshfl.sync.bfly.b32 %r6|%p2, %r5, 1, %r11, %r10;\n\tst.global.u32 [%rd4], %r6;\n")
    lane = np.arange(64) ^ 1
    assert found == [] and (values == lane + np.where(lane < 16, 200, 100)).all()


def test_what_another_thread_writes_is_not_read():
    body = "st.global.u32 [%rd4], %r1;\n\tld.global.u32 %r6, [%rd2];"
    assert run(f"\t{body}\n")[1] == ["reads what another thread of the launch writes"]


@pytest.mark.parametrize(("rows", "depth"), [(8, 4), (16, 4), (16, 8)])
def test_fragments_hold_each_entry_once(rows, depth):
    for matrix, shape, count in (("A", (rows, depth), rows * depth // 32), ("B", (depth, 8), depth // 4)):
        held = np.zeros(shape, int)
        for element in range(count):
            np.add.at(held, warps.layout(rows, depth, matrix, element), 1)
        assert (held == 1).all()


def test_sums_of_tensor_cores_are_rounded_towards_zero():
    exact = np.array([1 + 2.0**-24 * 1.5, -1 - 2.0**-24 * 1.5, 0.5, np.nan])
    assert np.array_equal(warps.towards_zero(exact), np.float32([1, -1, 0.5, np.nan]), equal_nan=True)


def test_names_are_those_of_the_source():
    gcc = "hessext::cuda::{anonymous}::rows<float, hessext::cuda::Shape<float, 64, 2, 2> >"
    demangled = "void hessext::cuda::(anonymous namespace)::rows<float, hessext::cuda::Shape<float, 64, 2, 2> >(float*)"
    assert short(gcc) == short(demangled) == "rows<float, Shape<float, 64, 2, 2>>"
    assert re.fullmatch(r"\w+", short("hessext::cuda::_GLOBAL__N__1_gram_cu::add(double const*, long)"))
