module @main {
  func.func public @main(%arg0: tensor<2x3xbf16> {fxhlo.kind = "input", fxhlo.name = "args_0"}) -> (tensor<2x3xbf16> {jax.result_info = "silu"}) {
    %0 = stablehlo.convert %arg0 : (tensor<2x3xbf16>) -> tensor<2x3xf32>
    %1 = stablehlo.logistic %0 : tensor<2x3xf32>
    %2 = stablehlo.multiply %0, %1 : tensor<2x3xf32>
    %3 = stablehlo.convert %2 : (tensor<2x3xf32>) -> tensor<2x3xbf16>
    return %3 : tensor<2x3xbf16>
  }
}
