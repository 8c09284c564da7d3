module @main {
  func.func public @main(%arg0: tensor<2x3xf32> {fxhlo.kind = "input", fxhlo.name = "args_0"}) -> (tensor<2xf32> {jax.result_info = "getitem"}, tensor<2xi64> {jax.result_info = "getitem_1"}) {
    %cst = stablehlo.constant dense<0xFF800000> : tensor<f32>
    %0 = stablehlo.reduce(%arg0 init: %cst) applies stablehlo.maximum across dimensions = [1] : (tensor<2x3xf32>, tensor<f32>) -> tensor<2xf32>
    %1 = stablehlo.broadcast_in_dim %0, dims = [0] : (tensor<2xf32>) -> tensor<2x3xf32>
    %2 = stablehlo.compare EQ, %arg0, %1 : (tensor<2x3xf32>, tensor<2x3xf32>) -> tensor<2x3xi1>
    %3 = stablehlo.compare NE, %arg0, %arg0 : (tensor<2x3xf32>, tensor<2x3xf32>) -> tensor<2x3xi1>
    %4 = stablehlo.or %2, %3 : tensor<2x3xi1>
    %5 = stablehlo.iota dim = 1 : tensor<2x3xi32>
    %c = stablehlo.constant dense<3> : tensor<2x3xi32>
    %6 = stablehlo.select %4, %5, %c : tensor<2x3xi1>, tensor<2x3xi32>
    %c_0 = stablehlo.constant dense<2147483647> : tensor<i32>
    %7 = stablehlo.reduce(%6 init: %c_0) applies stablehlo.minimum across dimensions = [1] : (tensor<2x3xi32>, tensor<i32>) -> tensor<2xi32>
    %8 = stablehlo.convert %7 : (tensor<2xi32>) -> tensor<2xi64>
    return %0, %8 : tensor<2xf32>, tensor<2xi64>
  }
}
