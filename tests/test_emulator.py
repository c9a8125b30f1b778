"""The emulator of `tests/emulator`: crimes, features of kernels, and counts."""

import math
import struct

import numpy as np
import pytest
from emulator import (
    BadLaunch,
    BarrierDivergence,
    CompileError,
    Counters,
    Crime,
    EndlessLoop,
    Memory,
    Misaligned,
    NvrtcMissing,
    OutOfBounds,
    Race,
    Trap,
    Uninitialised,
    UnsupportedInstruction,
    compile_ptx,
)
from emulator.harness import ARCHITECTURES, Device, by_hand, launch, module, samples

# Crimes -------------------------------------------------------------------------------------------

LAWFUL_AND_NOT = {
    # name: (crime, source of `k(float* x, float* y, int n)` with BAD to be defined or not)
    "past the end": (OutOfBounds, "y[t + (BAD ? 1 : 0)] = x[t];"),
    "past the end at last": (OutOfBounds,
        "for (int k = 0; k < n - 4 + BAD; k++) y[t + k] = 1;"),
    "before the start": (OutOfBounds, "y[(int)t - (BAD ? 1 : 0)] = 1.f;"),
    "address cut to 32 bits": (OutOfBounds,
        "size_t p = (size_t)(y + t); *(float*)(BAD ? (size_t)(unsigned)p : p) = 1.f;"),
    "null": (OutOfBounds, "float* p = BAD ? (float*)(size_t)(n - 5) : y; p[t] = 1.f;"),
    "misaligned vector": (Misaligned,
        "if (t == 0) *(float4*)(y + (BAD ? 1 : 0)) = make_float4(1, 2, 3, 4);"),
    "misaligned atomic": (Misaligned,
        "atomicAdd((float*)((char*)x + (BAD ? 2 : 0)), 1.f);"),
    "global memory unwritten": (Uninitialised, "x[t] = (BAD ? y : x)[t] + 1;"),
    "shared memory unwritten": (Uninitialised,
        "__shared__ float s[33]; s[t] = 1; __syncthreads();"
        "y[t] = s[t + (BAD ? 1 : 0)];"),
    "local memory unwritten": (Uninitialised,
        "float l[8]; for (int k = 0; k < 8 - BAD; k++) l[(k * n) % 8] = k;"
        "y[t] = l[(t * n) % 8];"),
    "shared memory outside": (OutOfBounds,
        "__shared__ float s[32]; s[t + (BAD ? n : 0)] = 1; y[t] = s[t];"),
    "local memory outside": (OutOfBounds,
        "float l[8]; for (int k = 0; k < 8; k++) l[(k * n) % 8 + (BAD ? 8 : 0)] = k;"
        "y[t] = l[(t * n) % 8];"),
    "equal values at one address": (Race, "if (BAD || t == 3) y[0] = 1.f;"),
    "neighbour's value": (Race,
        "x[t] = 1; if (!BAD) __syncthreads(); y[t] = x[(t + 1) % 32];"),
    "neighbour's shared value": (Race,
        "__shared__ float s[32]; s[t] = 0; __syncthreads(); s[t] = 1;"
        "if (!BAD) __syncthreads(); y[t] = s[t ^ 1];"),
    "written too soon after a read": (Race,
        "__shared__ float s[32]; s[t] = 1; __syncthreads(); float v = s[t ^ 1];"
        "if (!BAD) __syncthreads(); s[t] = v + 1; y[t] = v;"),
    "written too soon after all have read": (Race,
        "__shared__ float s; if (t == 0) s = 1; __syncthreads(); y[t] = s;"
        "if (!BAD) __syncthreads(); if (t == 31) s = 2; __syncthreads(); x[t] = s;"),
    "written too soon after a neighbour's read": (Race,
        "float v = x[t ^ 1]; if (!BAD) __syncthreads(); x[t] = v;"),
    "atomic beside a read": (Race,
        "atomicAdd(x, 1.f); if (!BAD) __syncthreads(); y[t] = x[0];"),
    "atomic beside a write": (Race,
        "if (t == 0) x[0] = 0; if (!BAD) __syncthreads(); atomicAdd(x, 1.f);"),
    "syncwarp missing": (Race,
        "__shared__ float s[32]; s[t] = 1; if (!BAD) __syncwarp(); y[t] = s[t ^ 1];"),
    "barrier in a branch": (BarrierDivergence,
        "if (!BAD || t < 16) { x[t] = 2; __syncthreads(); } y[t] = 1;"
        "__syncthreads(); x[31 - t] = y[t];"),
    "two barriers for one": (BarrierDivergence,
        "if (BAD && t < 16) { x[t] = 2; __syncthreads(); } else { y[t] = 3; "
        "__syncthreads(); }"),
    "shuffle with absentees": (BarrierDivergence,
        "if (!BAD || t < 16) y[t] = __shfl_xor_sync(~0u, x[t], 1);"),
    "vote with absentees": (BarrierDivergence,
        "if (t < 16) y[t] = __any_sync(BAD ? ~0u : 0xFFFFu, x[t] > 0);"),
    "a mask without oneself": (BarrierDivergence,
        "if (t < 16) y[t] = __any_sync(BAD ? 0xFFu : 0xFFFFu, x[t] > 0);"),
    "endless loop": (EndlessLoop,
        "volatile float* p = y; p[t] = 0; while (p[t] < 3 + (BAD ? 1e30f : 0.f)) "
        "p[t] += n;"),
    "a trap": (Trap, "if (BAD && t == 7) __trap(); y[t] = 1;"),
}  # fmt: skip


def crime_scene(statements, bad):
    source = f"#define BAD {int(bad)}\n" + (
        'extern "C" __global__ void k(float* x, float* y, int n) { int t = threadIdx.x;\n'
        + statements
        + "\n}"
    )
    device = Device()
    x = device.put(np.arange(32, dtype="f4"))
    y = device.empty(128)
    return launch(module(source), x, y, 5, device=device, step_limit=1000)


@pytest.mark.parametrize("name", LAWFUL_AND_NOT)
def test_crimes(name):
    crime, statements = LAWFUL_AND_NOT[name]
    with pytest.raises(Crime) as caught:
        crime_scene(statements, bad=True)
    assert type(caught.value) is crime
    place = caught.value.place
    assert place.kernel == "k"
    assert place.source == "kernel.cu:3"
    assert place.line > 0
    assert place.instruction
    if crime is not EndlessLoop:
        assert place.thread.startswith("block (0, 0, 0)")
    assert crime_scene(statements, bad=False).thread_instructions > 0


BETWEEN_BLOCKS = {
    "one writes, another reads": "y[i] = x[(i + BAD * 32) % 64]; x[i] = 1;",
    "both write": "y[BAD ? threadIdx.x : i] = x[i];",
    "a barrier is no help": "x[i] = 1; __syncthreads(); y[i] = x[(i + BAD * 32) % 64];",
    "atomic and write": "if (BAD ? i == 40 : i == 70) x[0] = 1; else atomicAdd(x, 1.f);",
}


@pytest.mark.parametrize("lanes", [64, 32], ids=["one batch", "two batches"])
@pytest.mark.parametrize("name", BETWEEN_BLOCKS)
def test_races_between_blocks(name, lanes, monkeypatch):
    monkeypatch.setattr("emulator.launch.LANES", lanes)
    for bad in (True, False):
        source = f"#define BAD {int(bad)}\n" + (
            'extern "C" __global__ void k(float* x, float* y) {'
            "int i = blockIdx.x * 32 + threadIdx.x;"
            + BETWEEN_BLOCKS[name] + "}"
        )  # fmt: skip
        device = Device()
        x, y = device.put(np.zeros(64, "f4")), device.empty(256)
        if bad:
            with pytest.raises(Race):
                launch(module(source), x, y, device=device, grid=2)
            launch(module(source), device.put(np.zeros(64, "f4")), device.empty(256), device=device,
                   grid=2, check=False)  # fmt: skip
        else:
            launch(module(source), x, y, device=device, grid=2)


@pytest.mark.parametrize("limit", [1, 100, 10**9])
def test_races_are_found_however_short_the_journal(limit, monkeypatch):
    monkeypatch.setattr("emulator.journal.LIMIT", limit)
    for name in [name for name, (crime, _) in LAWFUL_AND_NOT.items() if crime is Race]:
        with pytest.raises(Race):
            crime_scene(LAWFUL_AND_NOT[name][1], bad=True)
        crime_scene(LAWFUL_AND_NOT[name][1], bad=False)


def test_memory_that_nobody_touches_takes_none():
    # 2^38 bytes for each of 2^24 threads to have 2^14; the last two blocks run.
    source = """extern "C" __global__ void k(double* x, double* y, size_t step) {
        size_t t = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
        x[t * step] += t; y[(t + WRONG) * step] = x[t * step]; }"""
    device, threads, step = Device(), 2**24, 2**11
    x, y = device.empty(8 * threads * step), device.empty(8 * threads * step)
    last = x + 8 * step * (threads - 64)
    for thread in range(64):
        device.memory.data(last + 8 * step * thread, 8).view(float)[:] = 0.5
        device.memory.written(last + 8 * step * thread, 8)[:] = True
    blocks = {"grid": threads // 32, "first_block": threads // 32 - 2, "count": False}

    def run(wrong, **more):
        code = module(source.replace("WRONG", wrong))
        launch(code, x, y, struct.pack("<q", step), device=device, **(blocks | more))

    run("0")
    for thread in (0, 63):
        value = device.get(y + 8 * step * (threads - 64 + thread), float, 1)
        assert value == 0.5 + threads - 64 + thread
    with pytest.raises(OutOfBounds):
        run("1")
    with pytest.raises(Race, match="a store in global memory and a store"):
        run("0 - t % 64 / 32 * 32")
    with pytest.raises(Uninitialised, match="8 bytes that nobody wrote"):
        run("0", first_block=threads // 32 - 3)


def test_halves_of_a_word_do_not_race():
    source = 'extern "C" __global__ void k(unsigned short* x, unsigned char* y, int* z) {' + (
        "x[threadIdx.x] = 1; y[threadIdx.x] = 2; if (threadIdx.x == 0) z[0] = 3; }"
    )
    device = Device()
    launch(module(source), device.empty(64), device.empty(32), device.empty(4), device=device)


def test_use_after_free_and_between_allocations():
    code = module('extern "C" __global__ void k(float* x, int at) { x[at] = 1; }')
    device = Device()
    first, second = device.empty(64), device.empty(64)
    launch(code, first, 3, device=device, block=1)
    with pytest.raises(OutOfBounds, match="bytes after the end of the allocation of 64 bytes"):
        launch(code, first, (second - first) // 4 - 1, device=device, block=1)
    device.memory.free(first)
    with pytest.raises(OutOfBounds, match="12 of 64 bytes that were freed"):
        launch(code, first, 3, device=device, block=1)
    with pytest.raises(OutOfBounds, match="a null pointer"):
        code.launch("k", (1,), (1,), [bytes(8), bytes(4)], device.memory)


def test_messages_name_the_place():
    code = module(
        'extern "C" __global__ void k(float* x) {\n x[blockIdx.y * 8 + threadIdx.y] = 1; }'
    )
    device = Device()
    x = device.empty(36 * 4)
    with pytest.raises(OutOfBounds) as caught:
        launch(code, x, device=device, grid=(1, 5), block=(1, 8))
    text = str(caught.value)
    assert f"4 bytes at {x + 144:#x}: 0 bytes after the end of the allocation of 144 bytes" in text
    assert "source kernel.cu:2" in text
    assert "instruction 'st.global." in text
    assert "block (0, 4, 0) thread (0, 4, 0)" in text


BAD_LAUNCHES = {
    "block.x = 2048": {"block": (2048,)},
    "block.z = 65": {"block": (1, 1, 65)},
    "block.x = 0": {"block": (0,)},
    "a block of 2048 threads": {"block": (64, 32)},
    "__launch_bounds__ says 256": {"block": (512,)},
    "grid.x = 0": {"grid": (0,)},
    "grid.y = 65536": {"grid": (1, 65536)},
    "at most 49152": {"shared_bytes": 49153 - 128},
    "of 232448": {"shared_bytes": 10, "shared_limit": 228 << 10},
    "3 arguments: expected 2": {"arguments": [bytes(8), bytes(12), bytes(4)]},
    "of 8 bytes: expected 12": {"arguments": [bytes(8), bytes(8)]},
}


@pytest.mark.parametrize("text", BAD_LAUNCHES)
def test_refused_launches(text):
    code = module(
        "struct S { int a, b, c; };"
        'extern "C" __global__ __launch_bounds__(256) void k(float* x, S s) {'
        "__shared__ volatile float y[32]; extern __shared__ float more[];"
        "y[threadIdx.x] = more[0] = s.c; }"
    )
    device = Device()
    given = {"grid": (1,), "block": (1,), "arguments": [bytes(8), bytes(12)], "shared_bytes": 4}
    with pytest.raises(BadLaunch) as caught:
        code.launch("k", **(given | BAD_LAUNCHES[text]), memory=device.memory)
    assert text in str(caught.value)
    code.launch("k", **given, memory=device.memory)
    code.launch(
        "k", **(given | {"shared_bytes": 100 << 10}), shared_limit=227 << 10, memory=device.memory
    )
    with pytest.raises(BadLaunch, match="no kernel other: there are k"):
        code.launch("other", **given, memory=device.memory)


@pytest.mark.parametrize(
    ("target", "most"), [("sm_75", 64), ("sm_80", 163), ("sm_86", 99), ("sm_120", 99)]
)
def test_shared_memory_of_devices(target, most):
    code = by_hand("ret;", target=target)
    memory = Memory()
    code.launch("k", (1,), (1,), [], memory, shared_bytes=most << 10, shared_limit=most << 10)
    with pytest.raises(BadLaunch):
        code.launch("k", (1,), (1,), [], memory, shared_limit=(most << 10) + 1)


def test_what_it_lacks_is_named():
    with pytest.raises(
        UnsupportedInstruction, match=r"PTX line 7, instruction 'wgmma\.fence\.sync"
    ):
        by_hand("wgmma.fence.sync.aligned;\nret;").launch("k", (1,), (1,), [], Memory())
    with pytest.raises(UnsupportedInstruction, match="call"):
        by_hand("call f, ();\nret;", variables=".func f () { ret; }").launch(
            "k", (1,), (1,), [], Memory()
        )


def test_calls_are_named_when_they_are_made():
    source = """__device__ __noinline__ float twice(float x) { return 2 * x; }
    extern "C" __global__ void k(float* y, int n) { y[threadIdx.x] = n ? twice(n) : 1; }"""
    device = Device()
    out = device.empty(128)
    launch(module(source), out, 0, device=device)
    with pytest.raises(UnsupportedInstruction, match="a call of a device function"):
        launch(module(source), out, 1, device=device)


def test_compile_errors_carry_the_log():
    with pytest.raises((CompileError, NvrtcMissing), match=r"expected|NVRTC was not found"):
        compile_ptx("int x = ;")


# Features -----------------------------------------------------------------------------------------


def run_kernel(source, arrays, count, dtype="f4", arch="sm_90", **options):
    """Run ``k(inputs..., out)`` and return the output."""
    device = Device()
    places = [device.put(array) for array in arrays]
    out = device.put(np.zeros(count, dtype))
    launch(module(source, arch), *places, out, device=device, **options)
    return device.get(out, dtype, count)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_warp_at_work(arch):
    source = """extern "C" __global__ void k(const float* x, float* y) {
      float v = x[threadIdx.x]; int lane = threadIdx.x & 31;
      y[threadIdx.x] = __shfl_sync(~0u, v, 5) + __shfl_up_sync(~0u, v,
      3) + __shfl_down_sync(~0u, v, 7, 16);
      y[threadIdx.x + 64] = __shfl_xor_sync(~0u, v, lane == 99 ? 0 : 9);
      y[threadIdx.x + 128] = __popc(__ballot_sync(~0u, v > 40)) + (__any_sync(~0u,
      v > 62) ? 100 : 0)
        + (__all_sync(~0u, v > 31) ? 1000 : 0) + __popc(__activemask()) * 10000;
      y[threadIdx.x + 192] = lane < 8 ? __shfl_sync(0xFFu, v, lane + 1, 4) : -1.f;
    }"""
    x = np.arange(64, dtype="f4")
    got = run_kernel(source, [x], 256, block=64, arch=arch).reshape(4, 64)
    rows = x.reshape(2, 32)
    lane = np.arange(32)
    up = rows[:, np.where(lane >= 3, lane - 3, lane)]
    down = rows[:, np.where(lane % 16 + 7 < 16, lane + 7, lane)]
    np.testing.assert_array_equal(got[0], (rows[:, 5:6] + up + down).ravel())
    np.testing.assert_array_equal(got[1], rows[:, lane ^ 9].ravel())
    votes = (rows > 40).sum(1) + 100 * (rows > 62).any(1) + 1000 * (rows > 31).all(1) + 320000
    np.testing.assert_array_equal(got[2], np.repeat(votes, 32))
    segment = rows[:, lane // 4 * 4 + (lane + 1) % 4]
    np.testing.assert_array_equal(got[3].reshape(2, 32), np.where(lane < 8, segment, -1))


def test_match_and_reduce_in_a_warp():
    source = """extern "C" __global__ void k(const int* x, unsigned* y) {
      int v = x[threadIdx.x], all; y[threadIdx.x] = __match_any_sync(~0u, v);
      y[threadIdx.x + 32] = __match_all_sync(~0u, v >= 0, &all) + all;
      y[threadIdx.x + 64] = __reduce_add_sync(~0u, v);
      y[threadIdx.x + 96] = __reduce_max_sync(~0u, v);
    }"""
    x = np.arange(32, dtype="i4") % 5
    got = run_kernel(source, [x], 128, "u4").reshape(4, 32)
    groups = [sum(1 << int(k) for k in np.flatnonzero(x == v)) for v in x]
    assert got[0].tolist() == groups
    assert set(got[1].tolist()) == {0}  # all ones, and one more
    assert set(got[2].tolist()) == {int(x.sum())}
    assert set(got[3].tolist()) == {4}


def test_barriers_that_combine():
    source = """extern "C" __global__ void k(const float* x, int* y) { float v = x[threadIdx.x];
      y[threadIdx.x] = __syncthreads_or(v > 94) + 10 * __syncthreads_and(v >= 0)
        + 100 * __syncthreads_count(v > 90); }"""
    got = run_kernel(source, [np.arange(96, dtype="f4")], 96, "i4", block=96)
    assert set(got.tolist()) == {511}


def test_threads_that_left_need_not_come_to_a_barrier():
    source = """extern "C" __global__ void k(float* y) { __shared__ float s[64];
      if (threadIdx.x >= 40) return; s[threadIdx.x] = threadIdx.x; __syncthreads();
      y[threadIdx.x] = s[39 - threadIdx.x]; __syncwarp(); }"""
    got = run_kernel(source, [], 40, block=64)
    np.testing.assert_array_equal(got, np.arange(40)[::-1])


def test_blocks_that_diverge():
    source = """extern "C" __global__ void k(const int* x, float* y) { __shared__ int s[32];
      int n = blockIdx.x * 3 % 5 + 1; s[threadIdx.x] = x[threadIdx.x]; __syncthreads();
      for (int i = 0; i < n; i++) { int v = s[(threadIdx.x + 1) % 32]; __syncthreads();
        if (v % 3 == i % 3) s[threadIdx.x] = v + i; else s[threadIdx.x] = v * 2; __syncthreads(); }
      for (int i = 0; i < threadIdx.x % 7; i++) s[threadIdx.x] += (int)(blockIdx.x + i);
      y[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x]; }"""
    x = np.arange(32, dtype="i4")
    got = run_kernel(source, [x], 32 * 20, grid=20).reshape(20, 32)
    for block in range(20):
        s = x.copy()
        for i in range(block * 3 % 5 + 1):
            v = np.roll(s, -1)
            s = np.where(v % 3 == i % 3, v + i, v * 2)
        more = [sum(block + i for i in range(t % 7)) for t in range(32)]
        np.testing.assert_array_equal(got[block], s + more)


def test_early_returns_many_times():
    source = """extern "C" __global__ void k(float* y) { int i = threadIdx.x; float v = 0;
      for (int k = 0; k < 64; k++) { if (k * 3 > i) { y[i] = v; return; } v += k; } y[i] = -1; }"""
    got = run_kernel(source, [], 200, block=200)
    expected = [sum(range(i // 3 + 1)) if i // 3 + 1 < 64 else -1 for i in range(200)]
    np.testing.assert_array_equal(got, expected)


def test_registers_of_lanes_that_part():
    code = by_hand(
        """.reg .b64 %a, %w; .reg .b32 %i, %t, %u, %v, %c, %o; .reg .pred %p, %q;
        mov.u32 %i, %tid.x; mul.lo.u32 %v, %i, 3; mov.u32 %c, %v; and.b32 %o, %i, 1;
        setp.eq.u32 %p, %o, 0; @%p bra EVEN;
        mov.u32 %t, %tid.x; add.u32 %v, %v, 100; add.u32 %v, %v, %t;
        EVEN: mul.lo.u32 %t, %i, 7; @%p mov.u32 %v, %t; setp.gt.u32 %q, %i, 40; @%q ret;
        mov.u32 %u, %tid.x; mad.lo.u32 %v, %v, 1000, %c; ld.param.u64 %a, [py];
        mul.wide.u32 %w, %u, 4; add.s64 %a, %a, %w; st.global.u32 [%a], %v; ret;""",
        ".param .u64 py",
    )
    device = Device()
    out = device.empty(41 * 4)
    launch(code, out, device=device, block=64)
    expected = [(4 * i + 100 if i % 2 else 7 * i) * 1000 + 3 * i for i in range(41)]
    assert device.get(out, "u4", 41).tolist() == expected


def test_switch_and_constants():
    source = """__constant__ float table[4] = {1.5f, -2.f, 3.f, 0.25f}; __device__ int calls = 7;
    extern "C" __global__ void k(float* y) { float v; switch (threadIdx.x % 6) {
      case 0: v = table[threadIdx.x & 3]; break; case 1: v = sqrtf(threadIdx.x); break;
      case 2: v = threadIdx.x * 3 + calls; break; case 3: v = __int_as_float(0x40000000); break;
      case 4: v = y[40 + threadIdx.x]; break; default: v = -1; } y[threadIdx.x] = v; }"""
    got = run_kernel(source, [], 80)[:32]
    table = [1.5, -2, 3, 0.25]
    expected = [[table[i & 3], math.sqrt(i), i * 3 + 7, 2.0, 0.0, -1][i % 6] for i in range(32)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_100"])
def test_math_functions(arch):
    source = """extern "C" __global__ void k(const float* x, const double* z, float* y) {
      float v = x[threadIdx.x]; double w = z[threadIdx.x]; int i = threadIdx.x, n = blockDim.x;
      y[i] = sinf(v * 1000.f); y[n + i] = expf(v); y[2 * n + i] = logf(fabsf(v));
      y[3 * n + i] = v / 3.f;
      y[4 * n + i] = powf(fabsf(v), 1.7f); y[5 * n + i] = (float)exp(w);
      y[6 * n + i] = (float)(w / 3. + sqrt(fabs(w)));
      y[7 * n + i] = tanhf(v); y[8 * n + i] = fmodf(v, 0.7f); }"""
    rng = np.random.default_rng(5)
    x, z = (rng.standard_normal(32) * 3).astype("f4"), rng.standard_normal(32)
    got = run_kernel(source, [x, z], 9 * 32, arch=arch).reshape(9, 32)
    v, w = x.astype("f8"), z
    expected = [np.sin((x * np.float32(1000)).astype("f8")), np.exp(v), np.log(np.abs(v)), v / 3,
                np.abs(v) ** 1.7, np.exp(w), w / 3 + np.sqrt(np.abs(w)), np.tanh(v),
                np.fmod(v, np.float32(0.7))]  # fmt: skip
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


ATOMICS = {
    "int add": ("atomicAdd(y, x[i])", "i4", lambda y, x: y + x.sum()),
    "int max": ("atomicMax(y, x[i])", "i4", lambda y, x: max(y, x.max())),
    "int min": ("atomicMin(y, x[i])", "i4", lambda y, x: min(y, x.min())),
    "and": ("atomicAnd(y, x[i] | 3)", "i4",
            lambda y, x: np.bitwise_and.reduce(np.append(x | 3, y))),
    "or": ("atomicOr(y, x[i])", "i4", lambda y, x: np.bitwise_or.reduce(np.append(x, y))),
    "xor": ("atomicXor(y, x[i])", "i4", lambda y, x: np.bitwise_xor.reduce(np.append(x, y))),
    "long add": ("atomicAdd((unsigned long long*)y, (unsigned long long)x[i])", "i8",
                 lambda y, x: y + x.sum()),
    "float add": ("atomicAdd(y, x[i])", "f4", lambda y, x: y + x.sum()),
    "double add": ("atomicAdd(y, x[i])", "f8", lambda y, x: y + x.sum()),
    "inc": ("atomicInc((unsigned*)y, 20)", "i4", lambda y, x: (y + x.size) % 21),
}  # fmt: skip


@pytest.mark.parametrize("where", ["global", "shared"])
@pytest.mark.parametrize("name", ATOMICS)
def test_atomics(name, where):
    call, dtype, expected = ATOMICS[name]
    kind = {"i4": "int", "i8": "long long", "f4": "float", "f8": "double"}[dtype]
    shared = (
        f"__shared__ {kind} s; if (i == 0) s = *z; __syncthreads(); {kind}* y = &s; {call};"
        "__syncthreads(); if (i == 0) *z = s;"
    )
    body = shared if where == "shared" else f"{kind}* y = z; {call};"
    head = f'extern "C" __global__ void k(const {kind}* x, {kind}* z) {{ int i = threadIdx.x;'
    source = f"{head} {body} }}"
    rng = np.random.default_rng(6)
    x = rng.integers(1, 1000, 96).astype(dtype)
    got = run_kernel(source, [x], 1, dtype, block=96)
    assert got[0] == expected(np.dtype(dtype).type(0), x)


def test_old_values_of_atomics():
    source = """extern "C" __global__ void k(const int* x, int* y) { int i = threadIdx.x;
      y[4 + i] = atomicAdd(y, x[i]); y[68 + i] = atomicExch(y + 1, i + 1);
      y[132 + i] = atomicCAS(y + 2, i, i + 1); y[196 + i] = atomicMax(y + 3, x[i]);
      y[263 + i] = atomicAdd(y + 260 + i % 3, 2); }"""
    x = np.random.default_rng(7).integers(0, 50, 64).astype("i4")
    got = run_kernel(source, [x], 327, "i4", block=64)
    assert got[0] == x.sum()
    assert sorted(got[4:68] + x) == sorted(np.cumsum(x))
    assert sorted([*got[68:132], got[1]]) == list(range(65))
    assert got[2] == 64
    assert got[132:196].tolist() == list(range(64))
    assert got[3] == x.max()
    assert set(got[196:260]) <= {0, *x}
    for k in range(3):
        assert sorted(got[263 + k :: 3]) == list(range(0, got[260 + k], 2))


def test_a_schedule_is_another_order_of_blocks_and_atomics():
    source = """extern "C" __global__ void k(const int* x, int* y, float* z) {
      int i = blockIdx.x * 32 + threadIdx.x, turn = atomicAdd(y, 1);
      y[1 + turn] = x[i]; atomicAdd(z, 1.f / x[i]); }"""
    x, code, found = np.arange(1, 97, dtype="i4"), module(source), []
    for schedule in (None, None, 1, 1, 2):
        device = Device()
        places = device.put(x), device.put(np.zeros(97, "i4")), device.put(np.zeros(1, "f4"))
        launch(code, *places, device=device, grid=3, schedule=schedule)
        found.append((device.get(places[1], "i4", 97).tolist(), device.get(places[2], "f4", 1)[0]))
    assert all(order[0] == 96 and sorted(order[1:]) == x.tolist() for order, _ in found)
    assert found[0][0][1:] == x.tolist()
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert len({tuple(order) for order, _ in found}) == len({total for _, total in found}) == 3


@pytest.mark.parametrize("arch", ["sm_90", "sm_100"])
def test_half_atomics(arch):
    source = """extern "C" __global__ void k(__half2* a, __nv_bfloat162* b, __half* c,
      float* y) { int i = threadIdx.x;
      atomicAdd(a + i % 2, __floats2half2_rn(1.f, 0.5f));
      atomicAdd(b, __floats2bfloat162_rn(1.f, 2.f));
      atomicAdd(c + 1, __float2half(0.25f)); __syncthreads(); if (i) return;
      y[0] = __half2float(a[0].x); y[1] = __half2float(a[1].y); y[2] = __bfloat162float(b[0].x);
      y[3] = __bfloat162float(b[0].y); y[4] = __half2float(c[1]); y[5] = __half2float(c[0]); }"""
    zeros = np.zeros(2, "u4")
    got = run_kernel(source, [zeros, zeros, zeros], 6, arch=arch)
    assert got.tolist() == [16, 8, 32, 64, 8, 0]


def test_vectors_and_generic_addresses():
    source = """struct P { float4 a; int2 b; char c[5]; };
    __device__ __noinline__ float sum(const float* p) { return p[0] + p[3]; }
    extern "C" __global__ void k(const float4* x, const P p, float4* y) {
      __shared__ float4 s[32]; int i = threadIdx.x;
      s[i] = x[i]; __syncthreads();
      const float* q = i % 2 ? (const float*)&s[i] : (const float*)&x[i];
      float4 v = s[31 - i]; v.x += q[2]; v.y = p.a.y + p.c[i % 5]; v.w += p.b.y; y[i] = v; }"""
    x = np.arange(128, dtype="f4").reshape(32, 4)
    device = Device()
    out = device.empty(512)
    p = struct.pack("<4f2i5b3x", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -11)
    launch(module(source), device.put(x), p, out, device=device)
    expected = x[::-1].copy()
    expected[:, 0] += x[:, 2]
    expected[:, 1] = 2 + np.resize([7, 8, 9, 10, -11], 32)
    expected[:, 3] += 6
    np.testing.assert_array_equal(device.get(out, "f4", 128).reshape(32, 4), expected)


def test_subnormals_are_flushed_where_cupy_flushes_them():
    source = """extern "C" __global__ void k(const float* x, float* y) {
      y[threadIdx.x] = x[threadIdx.x] * 0.5f; }"""
    x = np.array([1.5e-38, 2e-38, 1e-40, -1e-40] * 8, "f4")
    assert run_kernel(source, [x], 32)[:4].tolist() == [0, 0, 0, 0]
    device = Device()
    out = device.empty(128)
    kept = module(source, options=("-ftz=false",))
    launch(kept, device.put(x), out, device=device)
    assert device.get(out, "f4", 32)[0] == np.float32(x[0]) * np.float32(0.5)


# Kernels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_transpose(arch):
    x = np.random.default_rng(8).standard_normal((70, 45)).astype("f4")
    device = Device()
    out = device.empty(x.nbytes)
    launch(
        samples(arch),
        device.put(x),
        70,
        45,
        out,
        name="transpose",
        device=device,
        grid=(2, 3),
        block=(32, 8),
    )
    np.testing.assert_array_equal(device.get(out, "f4", x.size).reshape(45, 70), x.T)


@pytest.mark.parametrize("lanes", [64, 1 << 15])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gather(arch, lanes, monkeypatch):
    monkeypatch.setattr("emulator.launch.LANES", lanes)
    rng = np.random.default_rng(9)
    x, weights = rng.standard_normal((50, 4)).astype("f4"), rng.standard_normal(9).astype("f4")
    where = rng.integers(0, 50, (300, 9)).astype("i4")
    device = Device()
    out = device.empty(300 * 16)
    places = [device.put(array) for array in (x, where, weights)]
    launch(
        samples(arch),
        *places,
        300,
        9,
        out,
        name="gather",
        device=device,
        grid=3,
        block=64,
        shared_bytes=36,
    )
    expected = np.einsum("t,ntc->nc", weights, x[where])
    np.testing.assert_allclose(device.get(out, "f4", 1200).reshape(300, 4), expected, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scatter(arch):
    rng = np.random.default_rng(10)
    x, where = rng.standard_normal((300, 4)).astype("f4"), rng.integers(0, 20, 300).astype("i4")
    device = Device()
    out = device.put(np.zeros((20, 4), "f4"))
    launch(
        samples(arch),
        device.put(x),
        device.put(where),
        300,
        out,
        name="scatter",
        device=device,
        grid=5,
        block=64,
    )
    expected = np.zeros((20, 4))
    np.add.at(expected, where, x)
    np.testing.assert_allclose(device.get(out, "f4", 80).reshape(20, 4), expected, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_reduction(arch):
    x = np.random.default_rng(11).integers(-9, 9, 1000).astype("f4")
    device = Device()
    out = device.put(np.zeros(1, "f4"))
    launch(samples(arch), device.put(x), 1000, out, name="total", device=device, grid=3, block=128)
    assert device.get(out, "f4", 1)[0] == x.sum()


# Counters -----------------------------------------------------------------------------------------


def counted(statements, kinds=("float", "float"), **options):
    parameters = ", ".join(f"{kind}* {name}" for kind, name in zip(kinds, "xy", strict=False))
    source = f"""extern "C" __global__ void k({parameters}) {{
      int i = blockIdx.x * blockDim.x + threadIdx.x; {statements} }}"""
    device = Device()
    x, y = device.put(np.zeros(8192, "f4")), device.put(np.zeros(8192, "f4"))
    return launch(module(source), x, y, device=device, **options)


GLOBAL_SECTORS = {  # statements: requests and sectors of loads, of stores, of atomics (64 threads)
    "coalesced": ("y[i] = x[i];", (2, 8), (2, 8), (0, 0)),
    "one sector off": ("y[i] = x[i + 1];", (2, 10), (2, 8), (0, 0)),
    "strided": ("y[i] = x[8 * i];", (2, 64), (2, 8), (0, 0)),
    "every other": ("y[2 * i] = x[i];", (2, 8), (2, 16), (0, 0)),
    "broadcast": ("y[i] = x[0];", (2, 2), (2, 8), (0, 0)),
    "backwards": ("y[i] = x[63 - i];", (2, 8), (2, 8), (0, 0)),
    "vectors": ("((float4*)y)[i] = ((float4*)x)[i];", (2, 32), (2, 32), (0, 0)),
    "a few lanes": ("if (i % 8 == 0) y[i] = x[i];", (2, 8), (2, 8), (0, 0)),
    "one warp": ("if (i < 5) y[i] = x[i];", (1, 1), (1, 1), (0, 0)),
    "atomics": ("atomicAdd(y + i / 16, x[i]);", (2, 8), (0, 0), (2, 2)),
    "doubles": ("((double*)y)[i] = ((double*)x)[i];", (2, 16), (2, 16), (0, 0)),
}


@pytest.mark.parametrize("name", GLOBAL_SECTORS)
@pytest.mark.parametrize("block", [64, 32])
def test_sectors(name, block):
    statements, loads, stores, atomics = GLOBAL_SECTORS[name]
    c = counted(statements, block=block, grid=64 // block)
    assert (c.global_load_requests, c.global_load_sectors) == loads
    assert (c.global_store_requests, c.global_store_sectors) == stores
    assert (c.global_atomic_requests, c.global_atomic_sectors) == atomics


def test_warps_that_are_not_whole():
    c = counted("y[i] = x[i];", block=40)
    assert (c.global_load_requests, c.global_load_sectors) == (2, 5)
    assert c.warp_instructions * 20 == c.thread_instructions


CONFLICTS = {  # index of s, a float array of one warp's: extra wavefronts
    "i": 0, "2 * i": 1, "3 * i": 0, "4 * i": 3, "32 * i": 31, "33 * i": 0, "i / 2": 0,
    "0": 0, "i ^ 5": 0, "i % 2 * 32": 1, "31 - i": 0, "i * 8 % 64": 1,
}  # fmt: skip


@pytest.mark.parametrize("index", CONFLICTS)
def test_bank_conflicts(index):
    fill = "__shared__ float s[1056]; for (int k = i; k < 1056; k += 32) s[k] = k; __syncthreads();"
    c = counted(f"{fill} y[i] = s[{index}];")
    assert c.bank_conflicts == CONFLICTS[index]
    assert c.shared_load_requests == 1
    assert c.shared_store_requests == 33


@pytest.mark.parametrize(("kind", "index", "extra"), [
    ("float4", "i", 0), ("float4", "2 * i", 4), ("float2", "i", 0), ("float2", "2 * i", 2),
    ("unsigned char", "i", 0), ("unsigned char", "4 * i", 0), ("unsigned short", "4 * i", 1),
])  # fmt: skip
def test_bank_conflicts_of_other_widths(kind, index, extra):
    c = counted(
        f"__shared__ float4 all[64]; {kind}* s = ({kind}*)all;"
        f"{kind} v = (({kind}*)x)[i]; s[{index}] = v;"
        f"__syncthreads(); (({kind}*)y)[i] = s[{index}];"
    )
    assert c.bank_conflicts == 2 * extra  # once written, once read


def test_bytes_are_counted_once():
    c = counted("float v = 0; for (int k = 0; k < 5; k++) v += x[i + k]; y[2 * i] = v;", block=32)
    assert (c.bytes_read, c.sectors_read) == (36 * 4, 5)
    assert (c.bytes_written, c.sectors_written) == (32 * 4, 8)
    c = counted("atomicAdd(y + i % 3, 1.f);")
    assert (c.bytes_read, c.bytes_written, c.sectors_written) == (0, 12, 1)
    assert (c.bytes_updated, c.sectors_updated) == (12, 1)
    assert counted("y[i] = x[i];").bytes_updated == 0


def test_classes():
    code = by_hand(
        """.reg .b64 %a, %w; .reg .b32 %i; .reg .f32 %f; .reg .pred %p; .shared .align 4 .b8 s[128];
        ld.param.u64 %a, [px]; mov.u32 %i, %tid.x; mul.wide.u32 %w, %i, 4; add.s64 %a, %a, %w;
        ld.global.f32 %f, [%a]; add.f32 %f, %f, 0f3F800000; setp.lt.u32 %p, %i, 8;
        @%p mul.f32 %f, %f, %f; bar.sync 0; cvt.rn.f32.u32 %f, %i; st.global.f32 [%a], %f;
        @!%p red.global.add.f32 [%a], %f; @%p bra END; shl.b32 %i, %i, 2; END: ret;""",
        ".param .u64 px",
    )
    device = Device()
    c = launch(code, device.put(np.zeros(32, "f4")), device=device)
    expected = {"float": 32 + 8, "integer": 2 * 32 + 24, "conversion": 32, "control": 3 * 32,
                "load global": 32, "store global": 32, "atomic global": 24, "move": 32,
                "barrier": 32, "parameter": 32}  # fmt: skip
    assert {name: number for name, number in c.classes.items() if number} == expected
    assert c.thread_instructions == sum(expected.values())
    assert c.warp_instructions == 15
    assert (c.launches, c.blocks, c.threads) == (1, 1, 32)
    twice = c + c
    assert twice.thread_instructions == 2 * c.thread_instructions
    assert sum([c, c], Counters()) == twice


def test_counting_can_be_left_out():
    c = counted("y[i] = x[i];", count=False)
    assert c == Counters()


def test_counts_do_not_depend_on_batches(monkeypatch):
    def run():
        statements = "for (int k = 0; k < i % 5; k++) y[i * 2] += x[k * 7 + i];"
        return counted(statements + "atomicAdd(x + 8000 + i % 9, 1.f);", grid=10, block=48)

    whole = run()
    monkeypatch.setattr("emulator.launch.LANES", 96)
    assert run() == whole
    monkeypatch.setattr("emulator.journal.LIMIT", 10)
    assert run() == whole


# Memory -------------------------------------------------------------------------------------------


def test_memory():
    memory, other = Memory(), Memory(base=0x7E00_0000_0000)
    first, second, none = memory.allocate(100), memory.allocate(5), memory.allocate(0)
    assert first == 0x7F00_0000_0000
    assert {first % 512, second % 512, none % 512} == {0}
    assert second - first >= 100 + 512
    assert other.allocate(4) < first
    assert (memory.data(first, 100) == 0xFF).all()
    assert not memory.written(first, 100).any()
    memory.data(first + 3, 4)[:] = 1
    assert memory.data(first, 100)[3:7].tolist() == [1] * 4
    assert memory.used_bytes == memory.peak_bytes == 105
    memory.free(first)
    assert (memory.used_bytes, memory.peak_bytes) == (5, 105)
    memory.reset_peak()
    assert memory.peak_bytes == 5
    for address, nbytes in ((first, 1), (second, 6), (second + 5, 1), (second - 1, 1), (0, 1)):
        with pytest.raises(OutOfBounds):
            memory.data(address, nbytes)
    with pytest.raises(OutOfBounds):
        memory.free(first)
    with pytest.raises(OutOfBounds):
        memory.free(second + 1)
    assert memory.data(none, 0).size == 0
