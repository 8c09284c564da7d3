"""Targets: names that parse, and what the others are answered."""

import pytest

from fxhlo.runtime.core import targets
from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.core.targets import KNOWN, Specification, Target


@pytest.mark.parametrize("name", list(KNOWN))
def test_every_known_name_parses_and_prints_the_same(name):
    assert str(Target.parse(name)) == name
    assert Target.parse(Target.parse(name)) == Target(name)


@pytest.mark.parametrize(
    ("text", "family", "topology_name"),
    [
        ("cpu", "cpu", None),
        ("cuda", "cuda", None),
        ("tpu-v5e", "tpu", "v5e:2x2"),
        ("tpu-v6e:4x4", "tpu", "v6e:4x4"),
        ("tpu-v5p:2x2x2", "tpu", "v5p:2x2x2"),
        ("tpu-7x", "tpu", "tpu7x:2x2x1"),
        ("tpu-v4", "tpu", "v4:2x2x1"),
    ],
)
def test_family_and_topology(text, family, topology_name):
    target = Target.parse(text)
    assert (target.family, target.topology_name, str(target)) == (family, topology_name, text)


def test_rates():
    v6e = Target.parse("tpu-v6e")
    assert (v6e.flops("bfloat16"), v6e.bandwidth, v6e.memory) == (918e12, 1.64e12, 31.25 * 2**30)
    assert v6e.flops("float64") is None
    cpu = Target.parse("cpu")
    assert (cpu.flops("float32"), cpu.bandwidth, cpu.memory) == (None, None, None)


def test_a_target_is_a_key():
    assert {Target.parse("tpu-v6e:2x2"): 1}[Target("tpu-v6e", "2x2")] == 1
    assert Target.parse("tpu-v6e:2x2") != Target.parse("tpu-v6e")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("tpu-v6", r"no target 'tpu-v6'\n.*did you mean tpu-v6e"),
        ("TPU-V5P", "did you mean tpu-v5p"),
        ("gpu", "did you mean cuda"),
        ("quantum", "targets are cpu, tpu-v4, tpu-v5e, tpu-v5p, tpu-v6e, tpu-7x, cuda"),
        ("", "no target ''"),
        ("cpu:2x2", "the target cpu has no topology"),
        ("tpu-v6e:", "'' is no topology of tpu-v6e: it takes 2 sizes"),
        ("tpu-v6e:2x2x1", r"takes 2 sizes\n.*tpu-v6e:2x2"),
        ("tpu-v5p:2x2", r"takes 3 sizes\n.*tpu-v5p:2x2x1"),
        ("tpu-v6e:0x2", "'0x2' is no topology"),
        ("tpu-v6e:2x2 ", "is no topology"),
    ],
)
def test_names_that_are_refused(text, answer):
    with pytest.raises(UnsupportedError, match=answer):
        Target.parse(text)


def test_what_a_kernel_asks_of_a_tpu():
    v5p = Target.parse("tpu-v5p:2x2x2")
    assert (v5p.generation, v5p.cores, v5p.vmem, v5p.mxu) == (5, 2, 64 * 2**20, 128)
    assert [Target.tile(bits) for bits in (32, 16, 8)] == [(8, 128), (16, 128), (32, 128)]
    cpu = Target.parse("cpu")
    assert (cpu.generation, cpu.cores, cpu.vmem, cpu.smem) == (0, 0, 0, 0)


def test_a_target_of_a_family_has_its_compile_options(monkeypatch):
    """What XLA's CPU backend gets wrong it gets wrong for a target of somebody else's that runs on it, too."""
    monkeypatch.setitem(targets._known, "lab", Specification("cpu", compile_options={"optimization_level": 1}))
    assert Target("lab").compile_options == {**Target("cpu").compile_options, "optimization_level": 1}
    assert Target("tpu-v6e").compile_options == {}
