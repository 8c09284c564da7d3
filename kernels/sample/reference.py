"""Reference of `fxhlo.sample` in eager torch.

Per row (request), in vLLM's order (vllm/v1/sample/sampler.py, ops/topk_topp_sampler.py, logits_processor/builtin.py):

1. y = logits / temperature, float32. NaN is treated as -infinity; a row of only -infinity gives token 0.
2. min-p: tokens whose probability is below min_p times the best one's are filtered.
3. top-k: tokens with y below the k-th largest y are filtered; ties with the k-th are kept.
4. top-p over the remaining tokens, renormalized: tokens of equal weight form a group, which is kept if the mass of
   all heavier groups is below top_p. That is vLLM's rule, except that vLLM splits a group of equal
   probabilities in the order of an unstable sort, and we keep all of it.
5. Exponential race: the token with the smallest E / p wins, E = -log(U), U from Threefry-2x32 with the seed as key and
   (step, token id) as counter; the lowest token id on ties. It is computed as z + log2(E) with
   z = log2(best p / p), so it needs no normalization.

Exactness. Every step is elementwise float32 arithmetic or an associative integer sum, so that results do not depend on batch
size, row or order of summation, and every implementation returns the same token:
- the lowest bit of a product is cleared before it is added to something (`_product`): this keeps compilers from using a
  fused multiply-add, which XLA does on CPU and eager torch does not;
- log2 and exp2 are our own polynomials (below), accurate to about 1e-6;
- probabilities are integers (`_weights`): at most 2**30, shifted so that a row's sum is below 2**31. So top-p
  resolves probabilities to 2**-30 of the total, and loses at most V * 2**-30 of the mass.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-5  # a temperature below it is greedy: `_SAMPLING_EPS` of vllm/v1/sample/sampler.py
LARGEST = 3.4028234663852886e38  # largest finite float32; +-infinity is clipped to it
SMALLEST_NORMAL = 1.1754943508222875e-38  # compiled code flushes smaller numbers to zero, so both do
LOG2_E = 1.4426950408889634

# A token whose probability is 2**-FILTERED of the best cannot win: the noise log2(E) is in (-33, 5.1).
FILTERED = 1000.0
# A distance in logits, with margin, at which a token cannot win: top-k ignores logits below (best - HORIZON).
HORIZON = 44.0

WEIGHT_BITS = 30  # the best token's weight is 2**30; a weight is floor(2**30 * probability / best probability)
SUM_BITS = 31  # weights are shifted right until their sum is below 2**31
TOP_P_BITS = 24  # top_p is rounded down to a multiple of 2**-24 (exact for a float32 in [0.5, 1])

# -log2(1 - g) / g on (0, 0.5], Chebyshev fit of degree 6, relative error 1e-6.
LOG_SERIES = (1.44269645, 0.72108072, 0.489001334, 0.270075679, 0.755991936, -0.923568487, 1.43126285)
# (2**-f - 1) / f on (0, 1], Chebyshev fit of degree 4, relative error 4.4e-7.
EXP_SERIES = (-0.693146944, 0.240214869, -0.0554094501, 0.00934564881, -0.00100433733)

# Threefry-2x32, 20 rounds: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
PARITY = 0x1BD11BDA
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _product(a: Tensor, b: Tensor | float) -> Tensor:
    """a * b with the lowest mantissa bit cleared, so that no compiler fuses it with a following addition."""
    return ((a * b).view(torch.int32) & -2).view(torch.float32)


def _series(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = _product(x, coefficients[-1]) + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value = _product(value, x) + coefficient
    return value


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """(e, g) with x = 2**e * (1 - g), e a float, g in (0, 0.5], for positive normal x."""
    bits = x.view(torch.int32)
    exponent = (bits >> 23) - 126
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).view(torch.float32)
    return exponent.to(torch.float32), 1.0 - mantissa


def _shift_right(x: Tensor, count: int) -> Tensor:
    """Logical right shift of int32."""
    return (x >> count) & ((1 << (32 - count)) - 1)


def threefry(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Threefry-2x32-20 on int32 with wrap-around; operands are broadcast."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for block in range(5):
        for rotation in ROTATIONS[block % 2]:
            x = x + y
            y = ((y << rotation) | _shift_right(y, 32 - rotation)) ^ x
        x, y = x + keys[(block + 1) % 3], y + (keys[(block + 2) % 3] + (block + 1))
    return x, y


def _log2_exponential(bits: Tensor) -> Tensor:
    """log2(E) for E = -log2(U), a standard exponential up to a factor common to all tokens, from 32 random bits.

    With u in (0, 0.5] from 31 bits, U is u or 1 - u by the sign bit, so that E keeps its relative precision near 0,
    where the winners of a large vocabulary are.
    """
    small = bits < 0
    u = ((bits & 0x7FFFFFFF).to(torch.float32) + 0.5) * 2.0**-32
    exponent, g = _split(u)
    g = torch.where(small, g, u)
    exponential = _product(g, _series(g, LOG_SERIES)) - torch.where(small, exponent, 0.0)
    exponent, g = _split(exponential)
    return exponent - _product(g, _series(g, LOG_SERIES))


def _weights(z: Tensor) -> Tensor:
    """floor(2**30 * 2**-z) as int32, for z >= 0."""
    z = torch.clamp(z, max=31.0)
    whole = z.to(torch.int32)
    fraction = z - whole.to(torch.float32)
    power = _product(fraction, _series(fraction, EXP_SERIES)) + 1.0
    return (power * 2.0**WEIGHT_BITS).to(torch.int32) >> whole


def _top_k_kept(y: Tensor, top_k: Tensor) -> Tensor:
    size = y.shape[1]
    k = torch.where((top_k > 0) & (top_k < size), top_k, size).to(torch.int64)
    ascending = torch.sort(y, dim=1).values
    return y >= torch.gather(ascending, 1, size - k)


def _top_p_kept(weights: Tensor, top_p: Tensor) -> Tensor:
    """Mask of the tokens that top-p keeps; weights of tokens filtered before are 0."""
    wide = weights.to(torch.int64)
    total = wide.sum(dim=1, keepdim=True)
    bits = torch.arange(SUM_BITS, SUM_BITS + 21, device=weights.device)
    wide = wide >> ((total >> bits) > 0).sum(dim=1, keepdim=True)
    fraction = (torch.clamp(top_p, 0.0, 1.0) * 2.0**TOP_P_BITS).to(torch.int64)
    target = (wide.sum(dim=1, keepdim=True) * fraction + (2**TOP_P_BITS - 1)) >> TOP_P_BITS
    descending = torch.sort(wide, dim=1, descending=True).values
    before = torch.cumsum(descending, dim=1) - descending
    threshold = torch.where(before < torch.clamp(target, min=1), descending, 2**SUM_BITS).amin(dim=1, keepdim=True)
    return torch.where(top_p < 1.0, wide >= threshold, True)


def cleaned(logits: Tensor) -> Tensor:
    """Logits in float32, with NaN as -infinity and subnormals as 0, since compiled code flushes them."""
    x = logits.to(torch.float32)
    x = torch.where(torch.isnan(x), float("-inf"), x)
    return torch.where(x.abs() < SMALLEST_NORMAL, 0.0, x)


def scaled(x: Tensor, temperature: Tensor) -> Tensor:
    """x / temperature, clipped to finite numbers; x has no NaN."""
    y = x / temperature
    y = torch.where(torch.isnan(y), -LARGEST, torch.clamp(y, -LARGEST, LARGEST))
    return torch.where(y.abs() < SMALLEST_NORMAL, 0.0, y)


def distance(y: Tensor) -> Tensor:
    """z = log2(probability of the best token / probability), at most FILTERED."""
    return torch.clamp(_product(y.amax(dim=1, keepdim=True) - y, LOG2_E), max=FILTERED)


def kept(y: Tensor, z: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Mask of the tokens that min-p, top-k and top-p keep; y, z [R, V], the parameters [R, 1]."""
    weights = _weights(z)
    least = torch.ceil(torch.clamp(min_p, 0.0, 1.0) * 2.0**WEIGHT_BITS).to(torch.int32)
    keep = torch.where(min_p > 0.0, weights >= least, True) & _top_k_kept(y, top_k)
    return keep & _top_p_kept(torch.where(keep, weights, 0), top_p)


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, steps: Tensor
) -> Tensor:
    """The next token of each request.

    logits float32 or bfloat16 [R, V] (processed); temperature float32 [R], greedy below 1e-5; top_k int32 [R], off if <= 0 or
    >= V; top_p float32 [R], off if >= 1; min_p float32 [R], off if <= 0; seeds int32 [R, 2], the 64 bits of
    the request's seed; steps int32 [R], the index of the output token. Returns int32 [R], always in [0, V).
    """
    size = logits.shape[1]
    temperature, top_k, top_p, min_p = (x.unsqueeze(1) for x in (temperature, top_k, top_p, min_p))
    tokens = torch.arange(size, dtype=torch.int32, device=logits.device).unsqueeze(0)

    x = cleaned(logits)
    best = x.amax(dim=1, keepdim=True)
    greedy = torch.where(x == best, tokens, size).amin(dim=1, keepdim=True)

    random = temperature >= EPSILON
    y = scaled(x, torch.where(random, temperature, 1.0))
    z = distance(y)
    noise = _log2_exponential(threefry((seeds[:, 0:1], seeds[:, 1:2]), (steps.unsqueeze(1), tokens))[0])
    score = torch.where(kept(y, z, top_k, top_p, min_p), z, FILTERED) + noise
    winner = torch.where(score == score.amin(dim=1, keepdim=True), tokens, size).amin(dim=1, keepdim=True)
    return torch.where(random & (best > float("-inf")), winner, greedy).squeeze(1)


def fake(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, steps: Tensor
) -> Tensor:
    return torch.empty_like(steps, dtype=torch.int32)
