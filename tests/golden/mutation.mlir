module @main {
  func.func public @main(%arg0: tensor<2x3xf32> {fxhlo.kind = "input", fxhlo.name = "args_0", tf.aliasing_output = 0 : i32}) -> (tensor<2x3xf32> {jax.result_info = "args_0.updated"}, tensor<3xf32> {jax.result_info = "select_1"}) {
    %0 = stablehlo.slice %arg0 [0:1, 0:3] : (tensor<2x3xf32>) -> tensor<1x3xf32>
    %1 = stablehlo.reshape %0 : (tensor<1x3xf32>) -> tensor<3xf32>
    %cst = stablehlo.constant dense<1.000000e+00> : tensor<3xf32>
    %2 = stablehlo.add %1, %cst : tensor<3xf32>
    %3 = stablehlo.reshape %2 : (tensor<3xf32>) -> tensor<1x3xf32>
    %c = stablehlo.constant dense<0> : tensor<i32>
    %c_0 = stablehlo.constant dense<0> : tensor<i32>
    %4 = stablehlo.dynamic_update_slice %arg0, %3, %c, %c_0 : (tensor<2x3xf32>, tensor<1x3xf32>, tensor<i32>, tensor<i32>) -> tensor<2x3xf32>
    %5 = stablehlo.slice %4 [0:1, 0:3] : (tensor<2x3xf32>) -> tensor<1x3xf32>
    %6 = stablehlo.reshape %5 : (tensor<1x3xf32>) -> tensor<3xf32>
    return %4, %6 : tensor<2x3xf32>, tensor<3xf32>
  }
}
