module @main {
  func.func public @main(%arg0: tensor<2x3xi32> {fxhlo.kind = "input", fxhlo.name = "args_0"}, %arg1: tensor<3xi32> {fxhlo.kind = "input", fxhlo.name = "args_1"}) -> (tensor<2x3xi32> {jax.result_info = "floor_divide"}) {
    %0 = stablehlo.broadcast_in_dim %arg1, dims = [1] : (tensor<3xi32>) -> tensor<2x3xi32>
    %c = stablehlo.constant dense<0> : tensor<2x3xi32>
    %1 = stablehlo.remainder %arg0, %0 : tensor<2x3xi32>
    %2 = stablehlo.compare NE, %1, %c : (tensor<2x3xi32>, tensor<2x3xi32>) -> tensor<2x3xi1>
    %3 = stablehlo.compare LT, %1, %c : (tensor<2x3xi32>, tensor<2x3xi32>) -> tensor<2x3xi1>
    %4 = stablehlo.compare LT, %0, %c : (tensor<2x3xi32>, tensor<2x3xi32>) -> tensor<2x3xi1>
    %5 = stablehlo.compare NE, %3, %4 : (tensor<2x3xi1>, tensor<2x3xi1>) -> tensor<2x3xi1>
    %6 = stablehlo.and %2, %5 : tensor<2x3xi1>
    %7 = stablehlo.divide %arg0, %0 : tensor<2x3xi32>
    %c_0 = stablehlo.constant dense<1> : tensor<2x3xi32>
    %8 = stablehlo.subtract %7, %c_0 : tensor<2x3xi32>
    %9 = stablehlo.select %6, %8, %7 : tensor<2x3xi1>, tensor<2x3xi32>
    return %9 : tensor<2x3xi32>
  }
}
