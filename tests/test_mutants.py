"""The faults that `make mutants` plants can still be planted, and every stage has some."""

import mutants
import pytest

# What is left to others: kernels and their launches (test_gpu.py), and what computes nothing.
BESIDES = {
    "__init__.py", "__main__.py", "_blas.py", "_build_kernels.py", "_cpu.py", "_demo_figures.py",
    "_kernels.py", "_manifest.py", "_numba.py", "_nvrtc.py", "_options.py", "_oracle.py",
    "_plot_arguments.py", "_prebuilt.py", "_receptive_field.py", "_specialisation.py", "_warmup.py",
    "demo.py", "plot.py",
}  # fmt: skip


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda each: f"{each.file}: {each.what}")
def test_a_fault_can_be_planted(mutant):
    assert mutants.occurrences(mutant) == 1
    assert mutant.new != mutant.old
    changed = mutants.text_of(mutant.file).replace(mutant.old, mutant.new)
    compile(changed, mutant.file, "exec")


def test_every_stage_on_the_cpu_has_faults():
    files = {path.name for path in (mutants.ROOT / "cupy_dcn").glob("*.py")}
    gpu = {name for name in files if name.endswith("_gpu.py") or name == "_gpu.py"}
    assert files - gpu - BESIDES == {mutant.file for mutant in mutants.MUTANTS}
    assert len(mutants.MUTANTS) == len(set(mutants.MUTANTS)) >= 40
    assert len({(each.file, each.what) for each in mutants.MUTANTS}) == len(mutants.MUTANTS)
    tests = {test for chosen in mutants.TESTS.values() for test in chosen}
    assert all((mutants.ROOT / "tests" / test).is_file() for test in tests)
