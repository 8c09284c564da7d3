"""The numbers that the reference and the XLA implementation of `fxhlo.sample` must share to agree bit for bit."""

EPSILON = 1e-5  # a temperature below it is greedy: `_SAMPLING_EPS` of vllm/v1/sample/sampler.py
LARGEST = 3.4028234663852886e38  # largest finite float32; +-infinity is clipped to it
SMALLEST_NORMAL = 1.1754943508222875e-38  # below it the compiled code flushes to zero, so both do
LOG2_E = 1.4426950408889634

# A token this many binary orders below the best cannot win the race: the noise spans log2(E) in (-33, 5.1).
FILTERED = 1000.0
# Natural-log distance of that point with room to spare: logits lower than (best - HORIZON) are left alone by top-k.
HORIZON = 44.0

WEIGHT_BITS = 30  # the best token's weight is 2**30; a weight is floor(2**30 * probability / best probability)
SUM_BITS = 31  # weights are shifted right until their sum is below 2**31
TOP_P_BITS = 24  # top_p is a multiple of 2**-24 (what a float32 in [0.5, 1] is)

# -log2(1 - g) / g on (0, 0.5], Chebyshev fit of degree 6, relative error 1e-6.
LOG_SERIES = (1.44269645, 0.72108072, 0.489001334, 0.270075679, 0.755991936, -0.923568487, 1.43126285)
# (2**-f - 1) / f on (0, 1], Chebyshev fit of degree 4, relative error 4.4e-7.
EXP_SERIES = (-0.693146944, 0.240214869, -0.0554094501, 0.00934564881, -0.00100433733)

# Threefry-2x32, 20 rounds: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
PARITY = 0x1BD11BDA
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
