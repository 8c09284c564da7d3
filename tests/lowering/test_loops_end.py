"""Loops whose number of steps depends on values end for every value: NaN, infinities, the dtype's ends, large orders.

A compiled loop cannot be interrupted, so all run in a process of their own that is killed where one takes too long.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from differential import check, execute, lowered

SECONDS = 900
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8]
EXTREME = torch.tensor(
    [float("nan"), float("inf"), -float("inf"), 1.7e308, -1.7e308, 1e15 + 0.5, -1e15 - 0.5, 5e-324, 0.0, -0.0, 0.5, 3.0]
)
"""Values that stop a loop from converging, counting or comparing."""


def pairs(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every value with every other."""
    return tuple(torch.cartesian_prod(values, values).t().contiguous())  # type: ignore[return-value]


def ends_of(dtype: torch.dtype) -> torch.Tensor:
    info = torch.iinfo(dtype)
    return torch.tensor([info.min, info.min + 1, info.max, info.max - 1, 0, 1, 2, 3, 6, 12, 99, 100], dtype=dtype)


def greatest_common_divisors() -> None:
    for dtype in INTEGERS:
        check(torch.gcd, *pairs(ends_of(dtype)))


def least_common_multiples() -> None:
    for dtype in INTEGERS:
        a, b = pairs(ends_of(dtype))
        if dtype.itemsize >= 4:  # eager divides the minimum by -1, which ends its process
            kept = (a != torch.iinfo(dtype).min) & (b != torch.iinfo(dtype).min)
            lowest = torch.full((3,), torch.iinfo(dtype).min, dtype=dtype)
            execute(lowered(torch.lcm, (lowest, lowest + 1)), (lowest, lowest + 1))
            a, b = a[kept], b[kept]
        check(torch.lcm, a, b)


def powers() -> None:
    for dtype in INTEGERS:
        base, exponent = pairs(ends_of(dtype))
        check(torch.pow, base[exponent >= 0], exponent[exponent >= 0])


def zetas() -> None:
    x = torch.tensor([2.0, 3.0, 7.0, 1.5, 1.0, 0.5, float("nan"), 60.0], dtype=torch.float64)
    q = torch.tensor([-1e3 - 0.5, -10.25, -0.75, -2.0, 1e-300, 0.3, 11.5, 1e15, float("nan")], dtype=torch.float64)
    check(torch.special.zeta, x[:, None].repeat(1, 9), q.repeat(8, 1))
    far = torch.tensor([-1e15 - 0.5], dtype=torch.float64)  # eager adds 1e15 terms; all but a few round away
    (value,) = execute(
        lowered(torch.special.zeta, (torch.full_like(far, 2), far)), (torch.full_like(far, 2), far)
    ).results
    torch.testing.assert_close(value, torch.full_like(far, torch.pi**2))


def gamma_functions() -> None:
    x = EXTREME.double()
    check(lambda x: (torch.polygamma(1, x), torch.digamma(x), torch.lgamma(x)), x[~(x < -1e14)])
    run(lambda x: torch.polygamma(3, x), x)
    a, x = pairs(EXTREME.double())
    both = lambda a, x: (torch.special.gammainc(a, x), torch.special.gammaincc(a, x))  # noqa: E731
    run(both, a, x)
    a = torch.tensor([0.1, 1.0, 30.0, 99.0, 100.0, 1e3, 1e6, 1e10])
    shares = torch.tensor([1e-3, 0.5, 0.95, 0.9999, 1.0, 1.00001, 1.05, 2.0, 10.0])
    orders = a.double()[:, None].expand(8, 9).contiguous()  # eager's float32 has few digits near x = a
    check(both, orders, orders * shares, rtol=1e-7, atol=1e-9)


def bessel_functions() -> None:
    names = [
        name
        for name in dir(torch.special)
        if "bessel" in name or name in ("airy_ai", "i0", "i0e", "i1", "i1e", "erfcx")
    ]
    run(lambda x: [getattr(torch.special, name)(x) for name in names], EXTREME.double())


def polynomials() -> None:
    names = [name for name in dir(torch.special) if "polynomial" in name]
    x, n = torch.tensor([0.3, -1.0, 1.0, 1.5, float("nan")]), torch.tensor([-1.0, 0, 1, 7, 60])
    x, n = (part.contiguous() for part in torch.cartesian_prod(x, n).t())
    for dtype in (torch.float32, torch.float64):
        check(
            lambda x, n: [getattr(torch.special, name)(x, n) for name in names],
            x.to(dtype),
            n.to(dtype),
            rtol=1e-3,
            atol=1e-4,
        )
        run(lambda x, n: [getattr(torch.special, name)(x, n) for name in names], *pairs(EXTREME.to(dtype)))


def matrices() -> None:
    made = torch.full((4, 4), 0.5) + torch.eye(4)
    spoiled = torch.stack([made.clone().fill_diagonal_(value) for value in EXTREME.tolist()])
    run(
        lambda a: [*torch.linalg.eigh(a), *torch.linalg.svd(a), torch.matrix_exp(a), torch.linalg.matrix_rank(a)],
        spoiled,
    )


def run(function: Callable[..., Any], *args: torch.Tensor) -> None:
    """Runs it lowered; eager's values at such places are tests of their own."""
    execute(lowered(function, args), args)


LOOPS = (
    greatest_common_divisors, least_common_multiples, powers, zetas, gamma_functions, bessel_functions, polynomials, matrices,
)  # fmt: skip


@pytest.mark.conformance
def test_every_loop_ends() -> None:
    command = [sys.executable, "-P", __file__]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    try:
        done = subprocess.run(command, env=environment, timeout=SECONDS, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"still running after {SECONDS} s: {(late.stdout or b'').decode().split()[-1:]}")
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    for loops in LOOPS:
        print(loops.__name__, flush=True)
        loops()
