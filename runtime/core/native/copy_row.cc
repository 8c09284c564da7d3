// fxhlo_copy_row: one row of a state to another row of it, in place.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "door.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kName = "fxhlo_copy_row";

ffi::Error copy_row(ffi::AnyBuffer state, ffi::AnyBuffer source, ffi::AnyBuffer destination, ffi::Result<ffi::AnyBuffer> updated) {
  Door door(kName);
  const auto shape = state.dimensions(), made = updated->dimensions();
  const auto type = state.element_type();
  door.require(type == ffi::F32 || type == ffi::BF16 || type == ffi::F16,
               [&] { return Door::described("state", state) + ", not float32 or bfloat16 or float16"; });
  door.require(shape.size() > 0 && shape[0] > 0, [&] { return Door::described("state", state) + ", which has no rows"; });
  door.check("source", source, {ffi::S32}, {}).check("destination", destination, {ffi::S32}, {});
  door.require(updated->element_type() == type && std::equal(shape.begin(), shape.end(), made.begin(), made.end()),
               [&] { return Door::described("the updated state", *updated) + ", and " + Door::described("state", state); });
  if (door.failed()) return door.error();
  const int64_t rows = shape[0], from = *data<int32_t>(source), to = *data<int32_t>(destination);
  for (const auto& [name, row] : {std::pair{"source", from}, std::pair{"destination", to}}) {
    door.require(row >= 0 && row < rows, [&, name = name, row = row] {
      return std::string(name) + " is row " + std::to_string(row) + ", the state has " + std::to_string(rows) + " rows";
    });
  }
  if (door.failed()) return door.error();
  char* memory = static_cast<char*>(updated->untyped_data());
  if (memory != state.untyped_data()) std::memcpy(memory, state.untyped_data(), state.size_bytes());
  const size_t size = state.size_bytes() / rows;
  if (from != to) std::memcpy(memory + to * size, memory + from * size, size);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_copy_row, fxhlo::copy_row,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());

#pragma GCC visibility pop
