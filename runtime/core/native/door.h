// Validates a kernel's operands and results before any of their memory is read or written.
//
// XLA does not type-check custom calls. A failed check is an error of the call with the operand's name, what it is and what
// it must be; so is an exception, which must not propagate out of a function called from C.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <new>
#include <string>
#include <utility>

#include "convert.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {

constexpr int64_t kAnySize = -1;

inline std::string name_of(xla::ffi::DataType type) {
  using xla::ffi::DataType;
  switch (type) {
    case DataType::PRED: return "bool";
    case DataType::S8: return "int8";
    case DataType::S16: return "int16";
    case DataType::S32: return "int32";
    case DataType::S64: return "int64";
    case DataType::U8: return "uint8";
    case DataType::U16: return "uint16";
    case DataType::U32: return "uint32";
    case DataType::U64: return "uint64";
    case DataType::F16: return "float16";
    case DataType::BF16: return "bfloat16";
    case DataType::F32: return "float32";
    case DataType::F64: return "float64";
    default: return "dtype " + std::to_string(static_cast<int>(type));
  }
}

template <typename Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text = "[";
  for (const int64_t size : sizes) {
    if (text.size() > 1) text += ", ";
    text += size == kAnySize ? "any" : std::to_string(size);
  }
  return text + "]";
}

// Keeps the first failed check; later ones are skipped.
class Door {
 public:
  explicit Door(const char* kernel) : kernel_(kernel) {}

  using Types = std::initializer_list<xla::ffi::DataType>;
  using Sizes = std::initializer_list<int64_t>;

  // `sizes`: one per dimension; kAnySize accepts any.
  Door& check(const char* name, const xla::ffi::AnyBuffer& buffer, Types types, Sizes sizes) {
    if (failed()) return *this;
    const auto dimensions = buffer.dimensions();
    bool fits = dimensions.size() == sizes.size() && std::count(types.begin(), types.end(), buffer.element_type()) > 0;
    auto wanted = sizes.begin();
    for (size_t i = 0; fits && i < dimensions.size(); ++i, ++wanted) fits = *wanted == kAnySize || *wanted == dimensions[i];
    if (!fits) refuse(described(name, buffer) + ", not " + names(types) + " " + shape_text(sizes));
    return *this;
  }

  // `message()`: what is wrong, as a clause that begins with the operand's name.
  template <typename Message>
  Door& require(bool holds, const Message& message) {
    if (!holds && !failed()) refuse(message());
    return *this;
  }

  static std::string described(const char* name, const xla::ffi::AnyBuffer& buffer) {
    return std::string(name) + " is " + name_of(buffer.element_type()) + " " + shape_text(buffer.dimensions());
  }

  bool failed() const { return !message_.empty(); }
  xla::ffi::Error error() const {
    return failed() ? xla::ffi::Error::InvalidArgument(message_) : xla::ffi::Error::Success();
  }

 private:
  void refuse(const std::string& message) { message_ = std::string(kernel_) + ": " + message; }

  static std::string names(Types types) {
    std::string text;
    for (auto type = types.begin(); type != types.end(); ++type) {
      if (std::count(types.begin(), type, *type) == 0) text += (text.empty() ? "" : " or ") + name_of(*type);
    }
    return text;
  }

  const char* kernel_;
  std::string message_;
};

// Returns body()'s error, or one for an exception that it throws: allocating a kernel's scratch may fail.
template <typename Body>
xla::ffi::Error guarded(const char* kernel, const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return xla::ffi::Error(xla::ffi::ErrorCode::kResourceExhausted, std::string(kernel) + ": there is no memory for its scratch");
  } catch (const std::exception& problem) {
    return xla::ffi::Error::Internal(std::string(kernel) + ": " + problem.what());
  }
}

// guarded(), with a value of the type by which the kernel computes `type`, one of float32, bfloat16 and float16.
template <typename Body>
xla::ffi::Error guarded(const char* kernel, xla::ffi::DataType type, const Body& body) {
  return guarded(kernel, [&] {
    switch (type) {
      case xla::ffi::DataType::F32: return body(float{});
      case xla::ffi::DataType::BF16: return body(BFloat16{});
      default: return body(Half{});
    }
  });
}

template <typename T>
const T* data(const xla::ffi::AnyBuffer& buffer) {
  return static_cast<const T*>(buffer.untyped_data());
}

template <typename T>
T* data(xla::ffi::Result<xla::ffi::AnyBuffer>& buffer) {
  return static_cast<T*>(buffer->untyped_data());
}

}  // namespace fxhlo
