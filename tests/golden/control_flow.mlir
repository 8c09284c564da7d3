module @main {
  func.func public @main(%arg0: tensor<2x3xf32> {fxhlo.kind = "input", fxhlo.name = "args_0"}) -> (tensor<2x3xf32> {jax.result_info = "getitem"}) {
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %0 = stablehlo.reduce(%arg0 init: %cst) applies stablehlo.add across dimensions = [0, 1] : (tensor<2x3xf32>, tensor<f32>) -> tensor<f32>
    %cst_0 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %1 = stablehlo.compare GT, %0, %cst_0 : (tensor<f32>, tensor<f32>) -> tensor<i1>
    %2 = "stablehlo.if"(%1) ({
      %cst_1 = stablehlo.constant dense<1.000000e+00> : tensor<2x3xf32>
      %3 = stablehlo.add %arg0, %cst_1 : tensor<2x3xf32>
      stablehlo.return %3 : tensor<2x3xf32>
    }, {
      %cst_1 = stablehlo.constant dense<1.000000e+00> : tensor<2x3xf32>
      %3 = stablehlo.subtract %arg0, %cst_1 : tensor<2x3xf32>
      stablehlo.return %3 : tensor<2x3xf32>
    }) : (tensor<i1>) -> tensor<2x3xf32>
    return %2 : tensor<2x3xf32>
  }
}
