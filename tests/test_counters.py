"""The kernels do no more than they did: counters of small shapes against tests/data/counters.json.

These are stored numbers of our own, as bounds from above: what is guarded is a cost, not a result
(that is compared before anything is counted). The rest is about the benchmark's own arithmetic.
"""

import sys
import warnings
from pathlib import Path

import pytest
from emulator import nvrtc

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import bounds
import counters
import gpu
import gpu_times
import machine
import plots
import results
import roofline
from gpu_report import Tools
from shapes import COUNTED, Case
from targets import DIRECTIONS, TARGETS, Figures

RENEW = "if that is meant: python benchmarks/bounds.py"
TINY = Case("tiny", 1, 8, 9, 7, 8, 3, 2, version=2)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("name", "dtype"), TARGETS)
def test_no_kernel_got_slower(name, dtype):
    if nvrtc.version() < bounds.LEAST_NVRTC:
        pytest.skip(f"this NVRTC, {bounds.nvrtc_version()}, has no vector atomics: more of them")
    found, slack = bounds.measure(name, dtype), bounds.slack_of(bounds.nvrtc_version())
    for direction, before in bounds.bounds_of(name, dtype).items():
        about = f"{name}, {dtype}, {direction}"
        worse = bounds.exceeded(found[direction], before, slack)
        assert not worse, f"{about}, per column element: {'; '.join(worse)}; {RENEW}"
        if better := bounds.much_better(found[direction], before):
            warnings.warn(f"{about} is much faster: {'; '.join(better)}; {RENEW}", stacklevel=1)


def test_what_is_slower_and_what_is_faster():
    before = dict.fromkeys(bounds.KINDS, 10.0) | {"atomic_sectors": 0.0, "steps": 4}
    assert bounds.exceeded(before, before, 0.03) == bounds.much_better(before, before) == []
    for kind, most in (("load_sectors", 10.3), ("dram_bytes", 10.3), ("steps", 4)):
        assert bounds.exceeded(before | {kind: most}, before, 0.03) == []
        slower = before | {kind: most + 1}
        assert bounds.exceeded(slower, before, 0.03) == [
            f"{kind}: {most + 1:g}, was {before[kind]:g}"
        ]
    assert bounds.exceeded(before | {"atomic_sectors": 0.1}, before, 0.03)
    assert bounds.exceeded(before | {"load_sectors": float("nan")}, before, 0.03)
    assert bounds.much_better(before | {"load_sectors": 8.0}, before) == ["load_sectors: 8, was 10"]


def test_every_target_has_its_bounds():
    assert {name for name, _ in TARGETS} == set(COUNTED) == set(bounds.SIZES)
    for name, dtype in TARGETS:
        deterministic = {counters.DETERMINISTIC} if dtype == "float32" else set()
        assert set(bounds.bounds_of(name, dtype)) == {*DIRECTIONS, *deterministic}


@pytest.mark.parametrize("dtype", gpu.DTYPES)
def test_a_rehearsal_is_the_call_without_its_kernels(dtype):
    case = TINY.of(images=3)
    counted, rehearsed = counters.count(case, dtype), counters.rehearse(case, dtype)
    for direction, call in counted.items():
        other = rehearsed[direction]
        assert [s[:3] for s in other.steps] == [s[:3] for s in call.steps]
        assert other.workspace_bytes == call.workspace_bytes > 0
        filled = counters.scaled(other.steps, call.steps)
        for field in ("thread_instructions", "atomic_sectors", "dram_bytes", "flops"):
            total = sum(getattr(step, field) for step in call.steps)
            assert sum(getattr(step, field) for step in filled) == pytest.approx(total)
        assert counters.scaled(other.steps, []) is None


def test_a_sample_foretells_a_larger_picture():
    sample = COUNTED["S1"].of(images=1, height=16, width=16)
    case = sample.of(images=2, height=24, width=16)
    samples, rehearsed = counters.count(sample, "float32"), counters.rehearse(case, "float32")
    counted = counters.count(case, "float32")
    for direction, call in counted.items():
        filled = counters.scaled(rehearsed[direction].steps, samples[direction].steps)
        expected = counters.per_element(call.steps, case)
        found = counters.per_element(filled, case)
        assert found == pytest.approx(expected, rel=0.05)


def test_nothing_is_counted_of_a_wrong_result(monkeypatch):
    expected = counters.expected_of(TINY, "float32")
    expected["grad_mask"] = 1.001 * expected["grad_mask"]
    monkeypatch.setattr(counters, "expected_of", lambda case, dtype: expected)
    with pytest.raises(counters.NotEqual, match=r"grad_mask is 1\.0e-03 of the largest value off"):
        counters.count(TINY, "float32")


def test_products_of_a_call_are_those_of_its_formula():
    for direction, call in counters.rehearse(TINY, "float16").items():
        found = sum(step.flops for step in call.steps)
        assert found == counters.product_flops(TINY, direction)
        assert all(step.half for step in call.steps if step.kind == "product")


def test_the_busiest_part_takes_the_time():
    device = roofline.DEVICES["H100"]
    copy = roofline.Step("copy", "copy", dram_bytes=3350e9)
    assert roofline.seconds(copy, device) == 1.0
    assert roofline.seconds(copy, device, warm=True) == pytest.approx(3350 / (5120 * 1.755))
    product = roofline.Step("p", "product", dram_bytes=1.0, flops=66.9e12)
    assert roofline.seconds(product, device) == pytest.approx(1)
    assert roofline.seconds(product._replace(half=True), device) == pytest.approx(66.9 / 989)
    issue = 4 * 132 * 1.98e9
    kernel = roofline.Step("k", "kernel", 1, 32 * issue, issue, 0, 1, 1, 1, 1, dram_bytes=1)
    assert roofline.terms(kernel, device)["issue"] == pytest.approx(1)
    assert roofline.seconds(kernel, device) == pytest.approx(1)
    steps = [copy, product, kernel]
    assert roofline.estimate(steps, device) == pytest.approx(3)
    assert roofline.bottleneck([copy, copy, product], device) == "DRAM"
    assert roofline.estimate([], device, compulsory_bytes=2 * 3350e9) == 2.0


def test_every_device_can_be_told_by_its_name():
    names = {"NVIDIA H100 80GB HBM3": "H100", "NVIDIA GeForce RTX 4090": "RTX 4090"}
    for name, key in names.items():
        assert [each for each in roofline.DEVICES if each in name] == [key]


def test_instructions_of_a_program():
    source = 'extern "C" __global__ void twice(float* y, int n) {{ {} y[0] = 2 * y[0]; }}'
    loop = "#pragma unroll 1\nfor (int i = 0; i < n; i++) y[i + 1] *= y[i];"
    short, long = (
        machine.programs(source.format(f"\n{part}\n"), "sm_90")["twice"] for part in ("", loop)
    )
    assert 4 <= short.ptx <= 10 < long.ptx < 200
    assert short.usage.spill_bytes == 0
    if machine.nvdisasm():
        assert 4 <= short.machine < long.machine
        assert short.ratio == short.machine / short.ptx


@pytest.fixture
def tools():
    """Return the tools for a GPU, with the stand-in for it."""
    import emulated_cupy

    with emulated_cupy.install() as cupy:
        yield Tools(cupy, rounds=2, elapsed=lambda start, end: 0.25)


def test_layers_are_timed_on_a_gpu(tools, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "LAYERS", (TINY,))
    monkeypatch.setattr(gpu, "BATCHES", (1, plots.IMAGES))
    name, rows, missing = gpu.timed(tools)
    assert [(row.case.images, row.direction) for row in rows[:4]] == [
        (images, direction) for images in (1, plots.IMAGES) for direction in DIRECTIONS
    ]
    assert {row.timing.seconds for row in rows} == {0.25e-3}
    assert {row.roof for row in rows} == {None}  # the stand-in is none of the devices
    lines = results.times_table(name, rows, missing)
    for peer in ("torchvision", "plain convolution"):
        assert any(line.startswith(f"\nNo {peer} beside: ") for line in lines)
    monkeypatch.setattr(gpu_times, "DEVICES", {name: roofline.DEVICES["H100"]})
    rows = gpu.timed(tools)[1]
    assert all(row.roof > 0 for row in rows)
    plots.draw_times(tmp_path / "times.png", [], (name, rows, missing), gpu.MODEL)
    assert (tmp_path / "times.png").stat().st_size > 10_000


def test_peers_are_timed_beside(tools, monkeypatch):
    def peer(error):
        arrays, grad_output = TINY.arrays_of("float32"), TINY.grad_output()
        output = counters.calls_of(TINY, arrays, grad_output)["forward"]()["output"]
        return lambda case, arrays, grad_output: (int, int, output * (1 + error))

    monkeypatch.setattr(gpu_times, "torchvision_calls", peer(0))
    found, missing = gpu_times.time_case(tools, TINY, "float32")
    assert list(missing) == ["plain convolution"]
    assert [found[each].peers for each in DIRECTIONS] == [{"torchvision": 0.25e-3}] * 2
    monkeypatch.setattr(gpu_times, "torchvision_calls", peer(1e-3))
    with pytest.raises(counters.NotEqual, match="not torchvision's"):
        gpu_times.time_case(tools, TINY, "float32")


def test_what_is_too_large_is_left_out(tools, monkeypatch):
    assert gpu_times.fits(tools.cupy, TINY, "float32")
    assert not gpu_times.fits(tools.cupy, TINY.of(images=10**9), "float32")
    monkeypatch.setattr(gpu, "LAYERS", (TINY,))
    monkeypatch.setattr(gpu, "BATCHES", (1,))
    monkeypatch.setattr(gpu_times, "fits", lambda *_: False)
    assert gpu.timed(tools)[1] == []


def test_nothing_is_timed_of_a_wrong_result(tools, monkeypatch):
    expected = counters.expected_of(TINY, "float32")
    monkeypatch.setattr(gpu_times, "expected_of", lambda case, dtype: expected | {"output": 7.0})
    with pytest.raises(counters.NotEqual, match="output is"):
        gpu_times.check(tools, TINY, "float32")


def test_results_say_what_is_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "BATCHES", (1, plots.IMAGES))
    rows = [row for dtype in gpu.DTYPES for row in gpu.modelled((TINY, dtype))]
    calls = counters.count(TINY, "float32", deterministic=True)
    counted = results.Counted(COUNTED["S1"], "float32", calls, {})
    text = results.text([counted], rows, None, "no driver")
    assert "**A model, not a measurement**" in text
    assert [text.count(f"float32 | {each} |") for each in calls] == [3, 3, 1]
    assert "No GPU time was measured: no driver." in text
    for row in rows:
        for device, (cold, warm) in row.times.items():
            assert row.roofs[device] <= warm <= cold
        assert sum(row.parts.values()) == pytest.approx(row.times[gpu.MODEL][0])
    plots.draw_times(tmp_path / "times.png", rows, None, gpu.MODEL)
    points = {at: {each: Figures(at, 1, 1, 1, 1) for each in DIRECTIONS} for at in (1, 2)}
    plots.draw_sizes(tmp_path / "sizes.png", {"channels": points, "side": points})
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("times", "sizes"))
