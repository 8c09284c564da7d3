module @main {
  func.func public @main(%arg0: tensor<3xi64> {fxhlo.kind = "input", fxhlo.name = "args_0"}) -> (tensor<3xi64> {jax.result_info = "add"}) {
    %0 = stablehlo.iota dim = 0 : tensor<3xi64>
    %c = stablehlo.constant dense<3> : tensor<3xi64>
    %1 = stablehlo.multiply %0, %c : tensor<3xi64>
    %c_0 = stablehlo.constant dense<2> : tensor<3xi64>
    %2 = stablehlo.add %1, %c_0 : tensor<3xi64>
    %3 = stablehlo.add %2, %arg0 : tensor<3xi64>
    return %3 : tensor<3xi64>
  }
}
