module @main {
  func.func public @main(%arg0: tensor<2x3xf32> {fxhlo.kind = "input", fxhlo.name = "args_0"}, %arg1: tensor<2xi64> {fxhlo.kind = "input", fxhlo.name = "args_1"}) -> (tensor<2x2xf32> {jax.result_info = "index"}) {
    %c = stablehlo.constant dense<0> : tensor<2xi64>
    %0 = stablehlo.compare LT, %arg1, %c : (tensor<2xi64>, tensor<2xi64>) -> tensor<2xi1>
    %c_0 = stablehlo.constant dense<3> : tensor<2xi64>
    %1 = stablehlo.add %arg1, %c_0 : tensor<2xi64>
    %2 = stablehlo.select %0, %1, %arg1 : tensor<2xi1>, tensor<2xi64>
    %3 = stablehlo.reshape %2 : (tensor<2xi64>) -> tensor<2x1xi64>
    %4 = "stablehlo.gather"(%arg0, %3) <{dimension_numbers = #stablehlo.gather<offset_dims = [0], collapsed_slice_dims = [1], start_index_map = [1], index_vector_dim = 1>, indices_are_sorted = false, slice_sizes = array<i64: 2, 1>}> : (tensor<2x3xf32>, tensor<2x1xi64>) -> tensor<2x2xf32>
    return %4 : tensor<2x2xf32>
  }
}
