module @main {
  func.func public @main(%arg0: tensor<1x1x4x4xf32> {fxhlo.kind = "input", fxhlo.name = "args_0"}) -> (tensor<1x1x2x2xf32> {jax.result_info = "avg_pool2d"}) {
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %0 = "stablehlo.reduce_window"(%arg0, %cst) <{padding = dense<0> : tensor<4x2xi64>, window_dilations = array<i64: 1, 1, 1, 1>, window_dimensions = array<i64: 1, 1, 2, 2>, window_strides = array<i64: 1, 1, 2, 2>}> ({
    ^bb0(%arg1: tensor<f32>, %arg2: tensor<f32>):
      %3 = stablehlo.add %arg1, %arg2 : tensor<f32>
      stablehlo.return %3 : tensor<f32>
    }) : (tensor<1x1x4x4xf32>, tensor<f32>) -> tensor<1x1x2x2xf32>
    %cst_0 = stablehlo.constant dense<4.000000e+00> : tensor<2x2xf32>
    %1 = stablehlo.broadcast_in_dim %cst_0, dims = [2, 3] : (tensor<2x2xf32>) -> tensor<1x1x2x2xf32>
    %2 = stablehlo.divide %0, %1 : tensor<1x1x2x2xf32>
    return %2 : tensor<1x1x2x2xf32>
  }
}
