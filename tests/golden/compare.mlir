module @main {
  func.func public @main(%arg0: tensor<2x3xf32> {fxhlo.kind = "input", fxhlo.name = "args_0"}) -> (tensor<2x3xi1> {jax.result_info = "gt"}) {
    %cst = stablehlo.constant dense<5.000000e-01> : tensor<2x3xf32>
    %0 = stablehlo.compare GT, %arg0, %cst : (tensor<2x3xf32>, tensor<2x3xf32>) -> tensor<2x3xi1>
    return %0 : tensor<2x3xi1>
  }
}
