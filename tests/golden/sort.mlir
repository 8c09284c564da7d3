module @main {
  func.func public @main(%arg0: tensor<2x3xf32> {fxhlo.kind = "input", fxhlo.name = "args_0"}) -> (tensor<2x3xf32> {jax.result_info = "getitem"}, tensor<2x3xi64> {jax.result_info = "getitem_1"}) {
    %0 = stablehlo.iota dim = 1 : tensor<2x3xi32>
    %1:2 = "stablehlo.sort"(%arg0, %0) <{dimension = 1 : i64, is_stable = true}> ({
    ^bb0(%arg1: tensor<f32>, %arg2: tensor<f32>, %arg3: tensor<i32>, %arg4: tensor<i32>):
      %3 = stablehlo.compare GE, %arg1, %arg2 : (tensor<f32>, tensor<f32>) -> tensor<i1>
      %4 = stablehlo.not %3 : tensor<i1>
      %5 = stablehlo.compare EQ, %arg1, %arg1 : (tensor<f32>, tensor<f32>) -> tensor<i1>
      %6 = stablehlo.and %4, %5 : tensor<i1>
      stablehlo.return %6 : tensor<i1>
    }) : (tensor<2x3xf32>, tensor<2x3xi32>) -> (tensor<2x3xf32>, tensor<2x3xi32>)
    %2 = stablehlo.convert %1#1 : (tensor<2x3xi32>) -> tensor<2x3xi64>
    return %1#0, %2 : tensor<2x3xf32>, tensor<2x3xi64>
  }
}
