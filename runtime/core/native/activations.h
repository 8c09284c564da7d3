// Activations of vectors of float32: of a dense MLP (activation.cc) and of experts (moe.cc). NaN stays NaN.
#pragma once

#include "vector.h"

namespace fxhlo {

constexpr float kLog2E = 1.44269504088896341f;

// e^x + 1; infinite from 2^128 on. exp2 goes up to 126.
inline Floats exp_and_one(Floats x) {
  Floats power = x * kLog2E;
  const Floats most = broadcast(128.0f);
  power = power > most ? most : power;
  const Ints large = power > 126.0f;
  const Floats below = exp2(large ? power - 2.0f : power);
  return (large ? below * 4.0f : below) + 1.0f;
}

// x * sigmoid(slope * x), as in torch: -0 for large negative x, NaN for -infinity (-infinity / infinity).
inline Floats sloped_silu(Floats x, float slope) { return x / exp_and_one(x * -slope); }
inline Floats silu(Floats x) { return sloped_silu(x, 1.0f); }

inline Floats sigmoid(Floats x) { return 1.0f / exp_and_one(-x); }

inline Floats relu2(Floats x) {
  const Floats positive = x < 0.0f ? Floats{} : x;
  return positive * positive;
}

// A series near zero, where 1 - 2 / (e^2x + 1) cancels; the relative error is a few units in the last place.
inline Floats tanh(Floats x) {
  const Floats square = x * x;
  Floats series = broadcast(62.0f / 2835.0f);
  series = fma(series, square, broadcast(-17.0f / 315.0f));
  series = fma(series, square, broadcast(2.0f / 15.0f));
  series = fma(series, square, broadcast(-1.0f / 3.0f));
  series = fma(series * square, x, x);
  const Ints near_zero = square < 0.07f;
  return near_zero ? series : 1.0f - 2.0f / exp_and_one(x + x);
}

inline Floats gelu_tanh(Floats x) {
  const Floats inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + tanh(inner));
}

// x * Phi(x), with the error function of Abramowitz and Stegun, 7.1.26: an absolute error of 1.5e-7.
inline Floats gelu(Floats x) {
  const Floats size = (x < 0.0f ? -x : x) * 0.70710678118654752f;
  const Floats t = 1.0f / fma(size, broadcast(0.3275911f), broadcast(1.0f));
  Floats tail = broadcast(1.061405429f);
  tail = fma(tail, t, broadcast(-1.453152027f));
  tail = fma(tail, t, broadcast(1.421413741f));
  tail = fma(tail, t, broadcast(-0.284496736f));
  tail = fma(tail, t, broadcast(0.254829592f));
  tail = tail * t * exp2(size * size * -kLog2E);  // 1 - erf(size)
  return 0.5f * x * (x < 0.0f ? tail : 2.0f - tail);
}

}  // namespace fxhlo
