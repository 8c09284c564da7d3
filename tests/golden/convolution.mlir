module @main {
  func.func public @main(%arg0: tensor<1x2x5x5xf32> {fxhlo.kind = "input", fxhlo.name = "args_0"}, %arg1: tensor<3x2x3x3xf32> {fxhlo.kind = "input", fxhlo.name = "args_1"}) -> (tensor<1x3x2x2xf32> {jax.result_info = "convolution"}) {
    %0 = stablehlo.convolution(%arg0, %arg1) dim_numbers = [b, f, 0, 1]x[o, i, 0, 1]->[b, f, 0, 1], window = {stride = [2, 2], pad = [[0, 0], [0, 0]], lhs_dilate = [1, 1], rhs_dilate = [1, 1]} {batch_group_count = 1 : i64, feature_group_count = 1 : i64, precision_config = [#stablehlo<precision HIGHEST>, #stablehlo<precision HIGHEST>]} : (tensor<1x2x5x5xf32>, tensor<3x2x3x3xf32>) -> tensor<1x3x2x2xf32>
    return %0 : tensor<1x3x2x2xf32>
  }
}
