"""Instructions of the emulator against NumPy and Python."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest

from .harness import DTYPES, assert_same_floats, bits, compute

# Integers -----------------------------------------------------------------------------------------

EDGES = [0, 1, 2, 3, 5, 7, 31, 32, 33, 100, 127, 128, 255, 256, 32767, 32768, 65535, 65536]
EDGES += [2**31 - 1, 2**31, 2**32 - 1, 2**32 - 2, 0x12345678, 0x87654321, 0xDEADBEEF]
EDGES_64 = [*EDGES, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF, 0xFEDCBA9876543210]


def pairs(kind):
    width = 8 * np.dtype(DTYPES[kind]).itemsize
    edges = sorted({value % 2**width for value in (EDGES_64 if width == 64 else EDGES)})
    edges = np.array(edges, "u8").astype(f"u{width // 8}").view(DTYPES[kind])
    return [values.ravel() for values in np.meshgrid(edges, edges)]


def truncate(a, b):
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def wrap(value, kind):
    width = 8 * np.dtype(DTYPES[kind]).itemsize
    value %= 2**width
    return value - 2**width if DTYPES[kind][0] == "i" and value >> (width - 1) else value


BINARY = {
    "add": lambda a, b, w: a + b,
    "sub": lambda a, b, w: a - b,
    "mul.lo": lambda a, b, w: a * b,
    "mul.hi": lambda a, b, w: a * b >> w,
    "div": lambda a, b, w: truncate(a, b),
    "rem": lambda a, b, w: a - truncate(a, b) * b if b else a,
    "min": lambda a, b, w: min(a, b),
    "max": lambda a, b, w: max(a, b),
}


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16", "u16"])
@pytest.mark.parametrize("name", BINARY)
def test_integer_arithmetic(name, kind):
    a, b = pairs(kind)
    got = compute(f"{name}.{kind} %d, %a, %b;", [kind, kind], kind, a, b)
    width = 8 * a.itemsize
    expected = [wrap(BINARY[name](int(x), int(y), width), kind) for x, y in zip(a, b, strict=True)]
    assert got.tolist() == expected


@pytest.mark.parametrize("kind", ["s32", "u32", "s16", "u16"])
def test_wide_products(kind):
    a, b = pairs(kind)
    wide = f"{kind[0]}{2 * int(kind[1:])}"
    got = compute(f"mul.wide.{kind} %d, %a, %b;", [kind, kind], wide, a, b)
    assert got.tolist() == [int(x) * int(y) for x, y in zip(a, b, strict=True)]
    got = compute(f"mad.wide.{kind} %d, %a, %b, 9;", [kind, kind], wide, a, b)
    assert got.tolist() == [wrap(int(x) * int(y) + 9, wide) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("name", ["and", "or", "xor", "not", "neg", "abs", "mad.lo", "mad.hi"])
@pytest.mark.parametrize("kind", ["s32", "s64"])
def test_logic_and_signs(name, kind):
    a, b = pairs(kind)
    width = 8 * a.itemsize
    unary = {"not": lambda x: ~x, "neg": lambda x: -x, "abs": abs}
    typed = f"b{width}" if name in {"and", "or", "xor", "not"} else kind
    if name in unary:
        got = compute(f"{name}.{typed} %d, %a;", [kind], kind, a)
        expected = [wrap(unary[name](int(x)), kind) for x in a]
    elif name.startswith("mad"):
        got = compute(f"{name}.{typed} %d, %a, %b, %a;", [kind, kind], kind, a, b)
        shift = width if name == "mad.hi" else 0
        expected = [
            wrap((int(x) * int(y) >> shift) + int(x), kind) for x, y in zip(a, b, strict=True)
        ]
    else:
        got = compute(f"{name}.{typed} %d, %a, %b;", [kind, kind], kind, a, b)
        operation = {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}[name]
        expected = [operation(int(x), int(y)) for x, y in zip(a, b, strict=True)]
    assert got.tolist() == expected


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64", "u16", "s16"])
def test_shifts_clamp(kind):
    width = int(kind[1:])
    values = np.array([1, 3, 2**width - 1, 2 ** (width - 1), 0x5A], "u8")
    a, amount = (x.ravel() for x in np.meshgrid(values, [0, 1, 7, width - 1, width, 70, 2**31]))
    a = a.astype(f"u{width // 8}").view(DTYPES[kind])
    left = compute(f"shl.b{width} %d, %a, %b;", [kind, "u32"], kind, a, amount)
    right = compute(f"shr.{kind} %d, %a, %b;", [kind, "u32"], kind, a, amount)
    both = list(zip(a.tolist(), amount.tolist(), strict=True))
    assert left.tolist() == [wrap(x << n if n < width else 0, kind) for x, n in both]
    assert right.tolist() == [x >> min(n, width) for x, n in both]
    fixed = compute(f"shr.{kind} %d, %a, {width + 3};", [kind], kind, a)
    assert fixed.tolist() == [x >> width for x in a.tolist()]


def test_funnel_shifts():
    a, b = pairs("u32")
    amount = np.resize([0, 1, 13, 31, 32, 40], a.size)
    triples = list(zip(a.tolist(), b.tolist(), amount.tolist(), strict=True))
    for side in "lr":
        for mode in ("wrap", "clamp"):
            got = compute(
                f"shf.{side}.{mode}.b32 %d, %a, %b, %c;", ["u32"] * 3, "u32", a, b, amount
            )
            expected = []
            for low, high, n in triples:
                n = min(n, 32) if mode == "clamp" else n % 32
                whole = high << 32 | low
                expected.append((whole << n >> 32 if side == "l" else whole >> n) % 2**32)
            assert got.tolist() == expected


def test_bit_counts():
    for kind, width in (("u32", 32), ("u64", 64)):
        values = np.array(EDGES if width == 32 else EDGES_64, "u8").astype(DTYPES[kind])
        whole = values.tolist()
        counted = compute(f"popc.b{width} %d, %a;", [kind], "u32", values)
        assert counted.tolist() == [x.bit_count() for x in whole]
        zeros = compute(f"clz.b{width} %d, %a;", [kind], "u32", values)
        assert zeros.tolist() == [width - x.bit_length() for x in whole]
        found = compute(f"bfind.u{width} %d, %a;", [kind], "u32", values)
        assert found.tolist() == [(x.bit_length() - 1) % 2**32 for x in whole]
        turned = compute(f"brev.b{width} %d, %a;", [kind], kind, values)
        assert turned.tolist() == [int(f"{x:0{width}b}"[::-1], 2) for x in whole]
    signed = np.array([0, -1, 1, -2, -5, 2**31 - 1, -(2**31)], "i4")
    found = compute("bfind.s32 %d, %a;", ["s32"], "u32", signed)
    assert found.tolist() == [2**32 - 1, 2**32 - 1, 0, 0, 2, 30, 30]
    found = compute("bfind.shiftamt.u32 %d, %a;", ["u32"], "u32", np.array([0, 1, 2**31], "u4"))
    assert found.tolist() == [2**32 - 1, 31, 0]


def test_bit_fields():
    values = np.array([0xDEADBEEF, 0x12345678, 0xFFFFFFFF, 0x80000001], "u4")
    fields = [(0, 8), (4, 4), (28, 8), (0, 32), (31, 1), (8, 0), (40, 4)]
    value, start = (x.ravel() for x in np.meshgrid(values, [s for s, _ in fields]))
    length = np.repeat([n for _, n in fields], values.size)
    rows = list(zip(value.tolist(), start.tolist(), length.tolist(), strict=True))
    got = compute("bfe.u32 %d, %a, %b, %c;", ["u32"] * 3, "u32", value, start, length)
    assert got.tolist() == [(v >> s) & (2**n - 1) for v, s, n in rows]
    got = compute(
        "bfe.s32 %d, %a, %b, %c;", ["s32", "u32", "u32"], "s32", value.view("i4"), start, length
    )

    def signed(v, s, n):
        if n == 0:
            return 0
        sign = v >> min(s + n - 1, 31) & 1
        field = (v >> s) & (2**n - 1)
        kept = max(min(n, 32 - s), 0)
        return wrap(field | (sign * (2**32 - 1) << kept), "s32")

    assert got.tolist() == [signed(*row) for row in rows]
    got = compute("bfi.b32 %d, 21, %a, %b, %c;", ["u32"] * 3, "u32", value, start, length)
    expected = []
    for v, s, n in rows:
        mask = (2**n - 1 << s) % 2**32
        expected.append(v & ~mask | (21 << s) & mask)
    assert got.tolist() == expected


def test_bytes_and_tables():
    a, b = pairs("u32")
    selector = np.resize(np.array([0x3210, 0x7654, 0x0246, 0xFEDC, 0x1B8C], "u4"), a.size)
    got = compute("prmt.b32 %d, %a, %b, %c;", ["u32"] * 3, "u32", a, b, selector)
    for x, y, s, result in zip(a, b, selector, got, strict=True):
        source = struct.pack("<II", x, y)
        for at in range(4):
            choice = int(s) >> 4 * at & 15
            byte = source[choice & 7]
            byte = 255 * (byte >> 7) if choice & 8 else byte
            assert int(result) >> 8 * at & 255 == byte
    got = compute("lop3.b32 %d, %a, %b, %c, 0x96;", ["u32"] * 3, "u32", a, b, selector)
    np.testing.assert_array_equal(got, a ^ b ^ selector)
    got = compute("lop3.b32 %d, %a, %b, %c, 0xE8;", ["u32"] * 3, "u32", a, b, selector)
    np.testing.assert_array_equal(got, (a & b) | (a & selector) | (b & selector))
    got = compute("dp4a.s32.s32 %d, %a, %b, 7;", ["u32"] * 2, "s32", a, b)
    x, y = (v.view("i1").reshape(-1, 4).astype("i8") for v in (a, b))
    np.testing.assert_array_equal(got, (x * y).sum(1) + 7)
    swap = ".reg .b16 %lo, %hi; mov.b32 {%lo, %hi}, %a; mov.b32 %d, {%hi, %lo};"
    got = compute(swap, ["u32"], "u32", a)
    np.testing.assert_array_equal(got, a << np.uint32(16) | a >> np.uint32(16))


COMPARE = {
    "eq": "__eq__",
    "ne": "__ne__",
    "lt": "__lt__",
    "le": "__le__",
    "gt": "__gt__",
    "ge": "__ge__",
}


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16", "u16"])
@pytest.mark.parametrize("name", COMPARE)
def test_integer_comparisons(name, kind):
    a, b = pairs(kind)
    got = compute(f"setp.{name}.{kind} %p, %a, %b; selp.u32 %d, 5, 6, %p;", [kind] * 2, "u32", a, b)
    expected = [
        5 if getattr(int(x), COMPARE[name])(int(y)) else 6 for x, y in zip(a, b, strict=True)
    ]
    assert got.tolist() == expected


# Floats -------------------------------------------------------------------------------------------

TINY = 1e-40  # subnormal in float32
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1.5, -2.5, 0.5, 2.5, 3.4e38, -3.4e38, 1.2e-38, 1e-30, -7.25]
SPECIAL += [math.inf, -math.inf, math.nan, TINY, -TINY, 1e-45, 123456.789, 2.0**31, -(2.0**31), 3e9]


def float_pairs(dtype="f4"):
    values = np.array(SPECIAL, dtype)
    return [x.ravel() for x in np.meshgrid(values, values)]


def flushed(x):
    x = np.asarray(x, "f4")
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


@pytest.mark.parametrize("ftz", [True, False])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_float_arithmetic(name, ftz):
    a, b = float_pairs()
    modifiers = ".rn" + ".ftz" * ftz
    got = compute(f"{name}{modifiers}.f32 %d, %a, %b;", ["f32"] * 2, "f32", a, b)
    keep = flushed if ftz else np.asarray
    with np.errstate(all="ignore"):
        function = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name]
        expected = keep(function(keep(a), keep(b)))
    assert_same_floats(got, expected)
    assert (np.nanmin(np.abs(got[got != 0])) < 2.0**-126) == (not ftz)


def exact_fma(a, b, c, dtype):
    """Multiply and add as fractions, rounded once (by Python, half to even)."""
    if not all(map(math.isfinite, (a, b, c))):
        return dtype(a) * dtype(b) + dtype(c)
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return dtype(a * b + c)
    bits_kept, lowest = (24, -149) if dtype is np.float32 else (53, -1074)
    exponent = math.frexp(float(exact))[1] if abs(exact) > 1e-300 else -1022
    step = Fraction(2) ** max(exponent - bits_kept, lowest)
    return dtype(float(round(exact / step) * step))


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_fma_rounds_once(kind):
    dtype = np.float32 if kind == "f32" else np.float64
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 400)).astype(dtype)
    c = (-a * b * (1 + rng.integers(-3, 4, 400) * np.finfo(dtype).eps)).astype(dtype)
    got = compute(f"fma.rn.{kind} %d, %a, %b, %c;", [kind] * 3, kind, a, b, c)
    expected = [
        exact_fma(float(x), float(y), float(z), dtype) for x, y, z in zip(a, b, c, strict=True)
    ]
    assert_same_floats(got, expected)
    assert (got != a * b + c).any()  # rounding twice is something else


@pytest.mark.parametrize("name", ["rcp.rn", "sqrt.rn", "ex2.approx", "lg2.approx", "rsqrt.approx",
                                  "sin.approx", "cos.approx", "tanh.approx"])  # fmt: skip
def test_functions(name):
    values = np.array([0.25, 1.0, 2.0, 0.1, 3.0, 10.0, 1.75, 100.0], "f4")
    got = compute(
        f"{name}.ftz.f32 %d, %a;".replace("tanh.approx.ftz", "tanh.approx"), ["f32"], "f32", values
    )
    function = {"rcp": lambda x: 1 / x, "sqrt": math.sqrt, "ex2": lambda x: 2**x, "lg2": math.log2,
                "rsqrt": lambda x: x**-0.5, "sin": math.sin, "cos": math.cos,
                "tanh": math.tanh}  # fmt: skip
    expected = np.array([function[name.partition(".")[0]](float(x)) for x in values], "f4")
    np.testing.assert_allclose(got, expected, rtol=2e-7)


@pytest.mark.parametrize("name", ["rz", "rm", "rp"])
def test_directed_rounding(name):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 200)).astype("f4")
    got = compute(f"mul.{name}.f32 %d, %a, %b;", ["f32"] * 2, "f32", a, b).astype("f8")
    exact = a.astype("f8") * b.astype("f8")
    below, above = got <= exact, got >= exact
    assert {"rz": np.abs(got) <= np.abs(exact), "rm": below, "rp": above}[name].all()
    assert (np.abs(got - exact) <= np.spacing(np.abs(got).astype("f4"))).all()
    assert (got != exact).any()


def test_extremes_of_floats():
    a, b = float_pairs()
    for name, pick in (("min", min), ("max", max)):
        got = compute(f"{name}.f32 %d, %a, %b;", ["f32"] * 2, "f32", a, b)
        with_nan = compute(f"{name}.NaN.f32 %d, %a, %b;", ["f32"] * 2, "f32", a, b)
        for x, y, value, strict in zip(a, b, got, with_nan, strict=True):
            numbers = [v for v in (x, y) if not np.isnan(v)]
            if not numbers:
                assert np.isnan(value)
                continue
            best = pick(numbers, key=lambda v: (float(v), not np.signbit(v)))
            assert bits(value) == bits(best)
            assert np.isnan(strict) if len(numbers) == 1 else bits(strict) == bits(best)


def test_signs_and_saturation():
    a, b = float_pairs()
    got = compute("copysign.f32 %d, %a, %b;", ["f32"] * 2, "f32", a, b)
    assert_same_floats(got, np.copysign(b, a))
    assert_same_floats(compute("abs.ftz.f32 %d, %a;", ["f32"], "f32", a), np.abs(flushed(a)))
    assert_same_floats(compute("neg.f32 %d, %a;", ["f32"], "f32", a), -a)
    got = compute("add.sat.f32 %d, %a, 0f00000000;", ["f32"], "f32", a)
    assert_same_floats(np.abs(got), np.abs(np.where(np.isnan(a), 0, np.clip(a, 0, 1))))


FLOAT_COMPARE = [
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "equ",
    "neu",
    "ltu",
    "leu",
    "gtu",
    "geu",
    "num",
    "nan",
]


@pytest.mark.parametrize("name", FLOAT_COMPARE)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_float_comparisons(name, kind):
    a, b = float_pairs(DTYPES[kind])
    got = compute(f"setp.{name}.{kind} %p, %a, %b; selp.u32 %d, 1, 0, %p;", [kind] * 2, "u32", a, b)
    for x, y, answer in zip(a, b, got, strict=True):
        missing = math.isnan(x) or math.isnan(y)
        if name in {"num", "nan"}:
            expected = missing == (name == "nan")
        elif missing:
            expected = len(name) == 3
        else:
            expected = getattr(float(x), COMPARE[name[:2]])(float(y))
        assert answer == expected, (x, y)


def test_comparison_with_a_third_and_a_second_result():
    a = np.arange(8, dtype="u4")
    got = compute(
        "setp.lt.u32 %p, %a, 6; setp.gt.and.u32 %p|%q, %a, 2, %p;"
        "selp.u32 %d, 10, 0, %p; @%q add.u32 %d, %d, 1;", ["u32"], "u32", a)  # fmt: skip
    # q is (not a > 2) and p.
    assert got.tolist() == [1, 1, 1, 10, 10, 10, 0, 0]


# Conversions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16", "u8"])
@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("origin", ["f32", "f64"])
def test_floats_to_integers(kind, mode, origin):
    values = np.array([*SPECIAL, 127.5, -0.5, 254.5, 255.7, 1e19, -1e19, 65535.9], DTYPES[origin])
    got = compute(f"cvt.{mode}.{kind}.{origin} %d, %a;", [origin], kind, values)
    info = np.iinfo(DTYPES[kind])
    rounding = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[mode]
    for x, result in zip(values.tolist(), got.tolist(), strict=True):
        if math.isnan(x):
            assert result == 0
        elif math.isinf(x):
            assert result == (info.max if x > 0 else info.min)
        else:
            assert result == min(max(rounding(x), int(info.min)), int(info.max))


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_integers_to_floats(kind):
    values, _ = pairs(kind)
    for to in ("f32", "f64"):
        got = compute(f"cvt.rn.{to}.{kind} %d, %a;", [kind], to, values)
        assert_same_floats(got, [np.dtype(DTYPES[to]).type(int(x)) for x in values])


def test_integer_widths():
    values = np.array([0, 1, 127, 128, 255, 256, 0x12345680, 0xFFFFFFFF], "u4")
    assert compute("cvt.s32.s8 %d, %a;", ["u32"], "s32", values).tolist() == [
        0, 1, 127, -128, -1, 0, -128, -1]  # fmt: skip
    assert compute("cvt.u32.u8 %d, %a;", ["u32"], "u32", values).tolist() == [
        0, 1, 127, 128, 255, 0, 128, 255]  # fmt: skip
    assert compute("cvt.s64.s32 %d, %a;", ["u32"], "s64", values)[-1] == -1
    assert compute("cvt.sat.u8.s32 %d, %a;", ["s32"], "u8", values.view("i4")).tolist() == [
        0, 1, 127, 128, 255, 255, 255, 0]  # fmt: skip


def nearest_bf16(x):
    """Round to bfloat16 by trying both neighbours."""
    low = np.frombuffer(struct.pack("<f", x), "u4")[0] & 0xFFFF0000
    high = np.uint64(low) + 0x10000
    pair = [struct.unpack("<f", struct.pack("<I", int(v)))[0] for v in (low, min(high, 0xFF800000))]
    nearer = abs(Fraction(x) - Fraction(pair[0])) if math.isfinite(pair[0]) else math.inf
    step = Fraction(pair[0]) - Fraction(x)
    if not math.isfinite(pair[1]):
        return int(low) >> 16 if abs(step) < Fraction(2) ** 119 else int(high) >> 16
    farther = abs(Fraction(x) - Fraction(pair[1]))
    if nearer == farther:
        return int(low) >> 16 if (int(low) >> 16) % 2 == 0 else int(high) >> 16
    return int(low) >> 16 if nearer < farther else int(high) >> 16


def test_bf16_conversions():
    rng = np.random.default_rng(3)
    values = (rng.standard_normal(200) * 10.0 ** rng.integers(-30, 30, 200)).astype("f4")
    ties = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0x3F807FFF, 0x3F808001, 0x00008000], "u4")
    values = np.concatenate([values, ties.view("f4")])
    got = compute("cvt.rn.bf16.f32 %d, %a;", ["f32"], "bf16", values)
    assert got.tolist() == [nearest_bf16(float(x)) for x in values]
    odd = compute("cvt.rn.bf16.f32 %d, %a;", ["f32"], "bf16", [np.inf, -np.inf, np.nan, 3.4e38])
    assert odd.tolist() == [0x7F80, 0xFF80, 0x7FFF, 0x7F80]
    back = compute("cvt.f32.bf16 %d, %a;", ["bf16"], "f32", got)
    np.testing.assert_array_equal(bits(back) >> 16, got)
    pair = compute("cvt.rn.bf16x2.f32 %d, %a, %b;", ["f32"] * 2, "u32", values, values[::-1].copy())
    np.testing.assert_array_equal(pair >> 16, got)  # the first operand is the upper half
    np.testing.assert_array_equal(pair & 0xFFFF, got[::-1])


def test_f16_conversions():
    values = np.array([*SPECIAL, 65504, 65519.9, 65520, 6e-8, 2.98e-8, 5.96e-8, 1 + 2**-11], "f4")
    got = compute("cvt.rn.f16.f32 %d, %a;", ["f32"], "f16", values)
    with np.errstate(over="ignore"):
        assert_same_floats(got, values.astype("f2"))
    assert_same_floats(compute("cvt.f32.f16 %d, %a;", ["f16"], "f32", got), got.astype("f4"))
    whole = compute(
        "cvt.rni.s32.f16 %d, %a;", ["f16"], "s32", np.array([2.5, 3.5, -1.5, 65504], "f2")
    )
    assert whole.tolist() == [2, 4, -2, 65504]
    pair = compute("cvt.rn.f16x2.f32 %d, %a, %b;", ["f32"] * 2, "u32", values, values[::-1].copy())
    halves = got.view("u2")
    finite = np.isfinite(values) & np.isfinite(values[::-1])
    np.testing.assert_array_equal((pair >> 16)[finite], halves[finite])
    np.testing.assert_array_equal((pair & 0xFFFF)[finite], halves[::-1][finite])


def test_float_widths_and_whole_numbers():
    values = np.array(SPECIAL, "f4")
    assert_same_floats(compute("cvt.f64.f32 %d, %a;", ["f32"], "f64", values), values.astype("f8"))
    wide = np.array([1 + 2**-24, 1e300, 1e-42, math.nan, 0.1], "f8")
    with np.errstate(over="ignore"):
        assert_same_floats(
            compute("cvt.rn.f32.f64 %d, %a;", ["f64"], "f32", wide), wide.astype("f4")
        )
    for mode, function in (
        ("rni", np.rint),
        ("rmi", np.floor),
        ("rpi", np.ceil),
        ("rzi", np.trunc),
    ):
        got = compute(f"cvt.{mode}.f32.f32 %d, %a;", ["f32"], "f32", values)
        assert_same_floats(got, function(values))
    got = compute("cvt.ftz.f64.f32 %d, %a;", ["f32"], "f64", values)
    assert_same_floats(got, flushed(values).astype("f8"))


# Halves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("pair", ["", "x2"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma.rn", "min", "max", "neg", "abs"])
def test_half_arithmetic(name, kind, pair):
    rng = np.random.default_rng(4)
    values = rng.standard_normal((3, 256)).astype("f4")
    codes = values.astype("f2").view("u2") if kind == "f16" else (bits(values) >> 16).astype("u2")
    wide = codes.view("f2").astype("f8") if kind == "f16" else (
        (codes.astype("u4") << 16).view("f4").astype("f8"))  # fmt: skip
    a, b, c = wide
    count = {"fma.rn": 3, "neg": 1, "abs": 1}.get(name, 2)
    exact = {"add": a + b, "sub": a - b, "mul": a * b, "fma.rn": a * b + c, "min": np.minimum(a, b),
             "max": np.maximum(a, b), "neg": -a, "abs": np.abs(a)}[name]  # fmt: skip
    registers = codes.view("u4") if pair else codes
    typed = "u32" if pair else "u16"
    operands = ", ".join(["%d", "%a", "%b", "%c"][: count + 1])
    got = compute(f"{name}.{kind}{pair} {operands};", [typed] * count, typed, *registers[:count])
    got = got.view("u2")
    if kind == "f16":
        np.testing.assert_array_equal(got.view("f2"), exact.astype("f2"))
    else:
        near = (got.astype("u4") << 16).view("f4").astype("f8")
        assert (np.abs(near - exact) <= np.abs(exact) * 2.0**-8).all()
        neighbours = [((got.astype("i8") + step).astype("u4") << 16).view("f4") for step in (-1, 1)]
        for other in neighbours:  # none is nearer
            assert not (np.abs(near - exact) > np.abs(other.astype("f8") - exact)).any()


def test_half_comparisons():
    a = np.array([1.0, 2.0, np.nan, -0.0], "f2").view("u2")
    b = np.array([2.0, 1.0, 1.0, 0.0], "f2").view("u2")
    got = compute("setp.lt.f16 %p, %a, %b; selp.u32 %d, 1, 0, %p;", ["u16"] * 2, "u32", a, b)
    assert got.tolist() == [1, 0, 0, 0]
    x, y = a.view("u4"), b.view("u4")
    both = compute("setp.lt.f16x2 %p|%q, %a, %b; selp.u32 %d, 1, 0, %p; @%q add.u32 %d, %d, 2;",
                   ["u32"] * 2, "u32", x, y)  # fmt: skip
    assert both.tolist() == [1, 0]
