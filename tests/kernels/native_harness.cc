// Calls the native kernels without XLA: several callers at once on one pool of threads, and with no memory for scratch.
//
// ThreadSanitizer cannot see the synchronization of XLA's own pool, which is not built with it; this pool it sees. Ends with 0
// where every call gave the same bits as alone, and every call without memory gave an error.
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "xla/ffi/api/c_api.h"

static std::atomic<size_t> largest_allocation{SIZE_MAX};

static void* allocate(size_t size) {
  void* found = size > largest_allocation.load(std::memory_order_relaxed) ? nullptr : std::malloc(size);
  if (found == nullptr) throw std::bad_alloc();
  return found;
}
void* operator new(size_t size) { return allocate(size); }
void* operator new(size_t size, const std::nothrow_t&) noexcept { return std::malloc(size); }
void operator delete(void* place) noexcept { std::free(place); }
void operator delete(void* place, size_t) noexcept { std::free(place); }
void* operator new(size_t size, std::align_val_t alignment) {
  const size_t to = static_cast<size_t>(alignment);
  void* found = size > largest_allocation.load(std::memory_order_relaxed) ? nullptr : std::aligned_alloc(to, (size + to - 1) / to * to);
  if (found == nullptr) throw std::bad_alloc();
  return found;
}
void operator delete(void* place, std::align_val_t) noexcept { std::free(place); }
void operator delete(void* place, size_t, std::align_val_t) noexcept { std::free(place); }

#define KERNELS(X) \
  X(fxhlo_linear) X(fxhlo_linear_bias) X(fxhlo_rms_norm) X(fxhlo_silu_and_mul) X(fxhlo_moe) X(fxhlo_ragged_paged_attention) \
  X(fxhlo_varlen_attention) X(fxhlo_ragged_paged_latent_attention) X(fxhlo_process_logits) X(fxhlo_sample) X(fxhlo_logprobs) X(fxhlo_ragged_causal_conv1d) \
  X(fxhlo_ragged_selective_scan) X(fxhlo_ragged_decayed_attention) X(fxhlo_ragged_gated_delta_rule)
#define DECLARE(name) extern "C" XLA_FFI_Error* name(XLA_FFI_CallFrame*);
KERNELS(DECLARE)

// ---- what XLA gives a kernel -----------------------------------------------------------------------------------

struct XLA_FFI_Error {
  XLA_FFI_Error_Code code;
  std::string message;
};

struct XLA_FFI_ExecutionContext {
  explicit XLA_FFI_ExecutionContext(int threads) : count(threads) {
    for (int i = 0; i < threads; ++i) workers.emplace_back([this] { work(); });
  }
  ~XLA_FFI_ExecutionContext() {
    {
      std::lock_guard<std::mutex> hold(mutex);
      done = true;
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
  }
  void schedule(XLA_FFI_Task* task, void* data) {
    {
      std::lock_guard<std::mutex> hold(mutex);
      tasks.emplace_back(task, data);
    }
    wake.notify_one();
  }
  void work() {
    std::unique_lock<std::mutex> hold(mutex);
    while (true) {
      wake.wait(hold, [this] { return done || !tasks.empty(); });
      if (tasks.empty()) return;
      auto [task, data] = tasks.front();
      tasks.pop_front();
      hold.unlock();
      task(data);
      hold.lock();
    }
  }
  const int64_t count;
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::pair<XLA_FFI_Task*, void*>> tasks;
  bool done = false;
  std::vector<std::thread> workers;
};

static XLA_FFI_Api make_api() {
  XLA_FFI_Api api{};
  api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
  api.XLA_FFI_Error_Create = [](XLA_FFI_Error_Create_Args* args) { return new XLA_FFI_Error{args->errc, args->message}; };
  api.XLA_FFI_Error_GetMessage = [](XLA_FFI_Error_GetMessage_Args* args) { args->message = args->error->message.c_str(); };
  api.XLA_FFI_Error_Destroy = [](XLA_FFI_Error_Destroy_Args* args) { delete args->error; };
  api.XLA_FFI_ThreadPool_Schedule = [](XLA_FFI_ThreadPool_Schedule_Args* args) -> XLA_FFI_Error* {
    args->ctx->schedule(args->task, args->data);
    return nullptr;
  };
  api.XLA_FFI_ThreadPool_NumThreads = [](XLA_FFI_ThreadPool_NumThreads_Args* args) -> XLA_FFI_Error* {
    *args->num_threads = args->ctx->count;
    return nullptr;
  };
  return api;
}
static const XLA_FFI_Api kApi = make_api();

// ---- calls -----------------------------------------------------------------------------------------------------

struct Array {
  XLA_FFI_DataType type;
  std::vector<int64_t> sizes;
  std::vector<char> bytes;
};

static size_t count_of(const std::vector<int64_t>& sizes) {
  size_t count = 1;
  for (const int64_t size : sizes) count *= static_cast<size_t>(size);
  return count;
}

static Array floats(std::vector<int64_t> sizes, float low = -2, float high = 2) {
  Array made{XLA_FFI_DataType_F32, sizes, std::vector<char>(4 * count_of(sizes))};
  uint32_t state = 12345;
  for (size_t i = 0; i < count_of(sizes); ++i) {
    state = state * 1664525u + 1013904223u;
    const float value = low + (high - low) * static_cast<float>(state >> 8) * 0x1p-24f;
    std::memcpy(made.bytes.data() + 4 * i, &value, 4);
  }
  return made;
}

static Array integers(std::vector<int64_t> sizes, const std::function<int32_t(size_t)>& value) {
  Array made{XLA_FFI_DataType_S32, sizes, std::vector<char>(4 * count_of(sizes))};
  for (size_t i = 0; i < count_of(sizes); ++i) {
    const int32_t number = value(i);
    std::memcpy(made.bytes.data() + 4 * i, &number, 4);
  }
  return made;
}

struct Attribute {
  std::string name;
  XLA_FFI_DataType type;
  float number;
  int64_t integer;
  std::string text;  // the value, where it is not empty
};

struct Call {
  const char* name;
  XLA_FFI_Handler* kernel;
  std::vector<Array> operands;
  std::vector<Array> results;
  std::vector<Attribute> attributes;  // sorted by name
};

// The results' bytes; the error's code where there is one.
static std::vector<std::vector<char>> run(const Call& call, XLA_FFI_ExecutionContext& pool, XLA_FFI_Error_Code* code) {
  std::vector<Array> operands = call.operands, results = call.results;
  std::vector<XLA_FFI_Buffer> buffers;
  buffers.reserve(operands.size() + results.size());
  std::vector<void*> args, rets, attrs;
  const auto add = [&](Array& array, std::vector<void*>& to) {
    buffers.push_back({XLA_FFI_Buffer_STRUCT_SIZE, nullptr, array.type, array.bytes.data(), static_cast<int64_t>(array.sizes.size()),
                       array.sizes.data()});
    to.push_back(&buffers.back());
  };
  for (Array& array : operands) add(array, args);
  for (Array& array : results) add(array, rets);
  std::vector<Attribute> given = call.attributes;
  std::vector<XLA_FFI_Scalar> scalars;
  std::vector<XLA_FFI_ByteSpan> spans, texts;
  std::vector<XLA_FFI_AttrType> attr_types;
  scalars.reserve(given.size()), spans.reserve(given.size()), texts.reserve(given.size());
  std::vector<XLA_FFI_ByteSpan*> names;
  for (Attribute& one : given) {
    void* value = one.type == XLA_FFI_DataType_F32 ? static_cast<void*>(&one.number) : &one.integer;
    scalars.push_back({one.type, value}), spans.push_back({one.name.data(), one.name.size()});
    texts.push_back({one.text.data(), one.text.size()});
    attr_types.push_back(one.text.empty() ? XLA_FFI_AttrType_SCALAR : XLA_FFI_AttrType_STRING);
    attrs.push_back(one.text.empty() ? static_cast<void*>(&scalars.back()) : &texts.back()), names.push_back(&spans.back());
  }
  std::vector<XLA_FFI_ArgType> arg_types(args.size(), XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> ret_types(rets.size(), XLA_FFI_RetType_BUFFER);
  XLA_FFI_CallFrame frame{};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &kApi;
  frame.ctx = &pool;
  frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, static_cast<int64_t>(args.size()), arg_types.data(), args.data()};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, static_cast<int64_t>(rets.size()), ret_types.data(), rets.data()};
  frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE, nullptr, static_cast<int64_t>(attrs.size()), attr_types.data(), names.data(), attrs.data()};
  *code = XLA_FFI_Error_Code_OK;
  if (XLA_FFI_Error* error = call.kernel(&frame)) {
    *code = error->code;
    if (error->code != XLA_FFI_Error_Code_RESOURCE_EXHAUSTED) std::fprintf(stderr, "%s: %s\n", call.name, error->message.c_str());
    delete error;
  }
  std::vector<std::vector<char>> bytes;
  for (Array& array : results) bytes.push_back(array.bytes);
  return bytes;
}

static std::vector<Call> calls() {
  const int64_t rows = 24, size = 40000, tokens = 40, wide = 300;
  const auto place = [](size_t i) { return static_cast<int32_t>(i); };
  const auto none = [](size_t) { return 0; };
  const Array logits = floats({rows, size}, -8, 8), row = floats({rows}, 0.5f, 1.0f), matrix = floats({70, 600}), weight = floats({wide, 600});
  const Array cache = floats({32, 16, 4, 64}), latents = floats({32, 16, 72}), state = floats({3, 8, 32, 64}), rates = floats({tokens, 8}, 0, 1), keys = floats({tokens, 2, 64});
  const Array slots = integers({2}, [](size_t i) { return static_cast<int32_t>(2 - i); });
  const Array lengths = integers({2}, [](size_t i) { return i == 0 ? 100 : 10; });
  const Array starts = integers({3}, [](size_t i) { return static_cast<int32_t>(i == 0 ? 0 : i == 1 ? 30 : 40); });
  const Array decays = floats({tokens, 8}, -1, 0), column = floats({600}), convolved = floats({3, 3, 600}), scanned = floats({3, 600, 16});
  const Array up_keys = floats({16, 32, 64}), up_values = floats({16, 64, 32});
  const auto latent = [&](const char* name, int64_t form) -> Call {
    return {name,
            fxhlo_ragged_paged_latent_attention,
            {floats({tokens, 16, 40}), floats({tokens, 72}), up_keys, up_values, latents,
             integers({tokens}, [](size_t i) { return static_cast<int32_t>(i < 30 ? 70 + i : 32 * 8 + 100 + i - 30); }),
             integers({2, 16}, place), integers({2}, [](size_t i) { return i == 0 ? 100 : 110; }), starts},
            {floats({tokens, 16, 32}), latents},
            {{"form", XLA_FFI_DataType_S64, 0, form, ""}, {"scale", XLA_FFI_DataType_F32, 0.125f, 0, ""},
             {"sliding_window", XLA_FFI_DataType_S64, 0, 0, ""}}};
  };
  return {
      {"linear", fxhlo_linear, {matrix, weight}, {floats({70, wide})}, {}},
      {"linear_bias", fxhlo_linear_bias, {matrix, weight, floats({wide})}, {floats({70, wide})}, {}},
      {"rms_norm", fxhlo_rms_norm, {floats({200, 600}), floats({600})}, {floats({200, 600})}, {{"epsilon", XLA_FFI_DataType_F32, 1e-5f, 0, ""}}},
      {"silu_and_mul", fxhlo_silu_and_mul, {floats({200, 1200})}, {floats({200, 600})}, {}},
      {"moe",
       fxhlo_moe,
       {floats({rows, 200}), floats({6, 300, 200}), floats({6, 200, 150}), floats({rows, 2}), integers({rows, 2}, [](size_t i) { return static_cast<int32_t>(i % 7); }),
        floats({6, 300}), floats({6, 200})},
       {floats({rows, 200})},
       {{"activation", XLA_FFI_DataType_F32, 0, 0, "silu"}, {"alpha", XLA_FFI_DataType_F32, 1.0f, 0, ""}, {"beta", XLA_FFI_DataType_F32, 0.0f, 0, ""},
        {"limit", XLA_FFI_DataType_F32, 0.0f, 0, ""}, {"weight_on_input", XLA_FFI_DataType_PRED, 0, 1, ""}}},
      {"sample",
       fxhlo_sample,
       {logits, row, integers({rows}, [](size_t i) { return static_cast<int32_t>(i * 50); }), row, floats({rows}, 0, 0.01f),
        integers({rows, 2}, place), integers({rows}, place)},
       {integers({rows}, none)},
       {}},
      {"logprobs",
       fxhlo_logprobs,
       {logits, integers({rows}, place), integers({}, [](size_t) { return 1; }),
        integers({rows, size / 32}, [](size_t i) { return static_cast<int32_t>(i * 2654435761u); })},
       {integers({rows, 201}, none), floats({rows, 201}), integers({rows}, none)},
       {}},
      {"process_logits",
       fxhlo_process_logits,
       {logits, integers({3}, [](size_t) { return 1; }), integers({rows, size / 32}, [](size_t i) { return static_cast<int32_t>(i * 2654435761u); }),
        integers({rows, 8}, place), floats({rows, 8}), integers({rows, 64}, place), integers({rows, 64}, place), row, row, row},
       {floats({rows, size})},
       {}},
      {"attention",
       fxhlo_ragged_paged_attention,
       {floats({tokens, 4, 64}), floats({tokens, 2, 64}), floats({tokens, 2, 64}), cache,
        integers({tokens}, [](size_t i) { return static_cast<int32_t>(i < 30 ? 70 + i : 32 * 8 + 100 + i - 30); }),
        integers({2, 16}, place), integers({2}, [](size_t i) { return i == 0 ? 100 : 110; }),
        integers({3}, [](size_t i) { return static_cast<int32_t>(i == 0 ? 0 : i == 1 ? 30 : 40); }), floats({4}), floats({0})},
       {floats({tokens, 4, 64}), cache},
       {{"chunk", XLA_FFI_DataType_S64, 0, 0, ""}, {"scale", XLA_FFI_DataType_F32, 0.125f, 0, ""},
        {"sliding_window", XLA_FFI_DataType_S64, 0, 0, ""}, {"soft_cap", XLA_FFI_DataType_F32, 0.0f, 0, ""}}},
      latent("latent_attention", 1), latent("latent_attention, decompressed", 2),
      {"conv", fxhlo_ragged_causal_conv1d, {floats({tokens, 600}), floats({600, 4}), column, convolved, slots, lengths, starts},
       {floats({tokens, 600}), convolved}, {{"silu", XLA_FFI_DataType_S64, 0, 1, ""}}},
      {"scan",
       fxhlo_ragged_selective_scan,
       {floats({tokens, 600}), floats({tokens, 600}, 0, 1), floats({600, 16}, -2, 0), floats({tokens, 16}), floats({tokens, 16}), column, scanned,
        slots, lengths, starts},
       {floats({tokens, 600}), scanned},
       {}},
      {"decayed",
       fxhlo_ragged_decayed_attention,
       {keys, keys, floats({tokens, 8, 32}), rates, rates, floats({8}), state, slots, lengths, starts},
       {floats({tokens, 8, 32}), state},
       {}},
      {"delta",
       fxhlo_ragged_gated_delta_rule,
       {keys, keys, floats({tokens, 8, 32}), decays, rates, state, slots, lengths, starts},
       {floats({tokens, 8, 32}), state},
       {{"l2norm", XLA_FFI_DataType_S64, 0, 1, ""}, {"scale", XLA_FFI_DataType_F32, 0.125f, 0, ""}}},
      {"varlen_attention",
       fxhlo_varlen_attention,
       {floats({200, 4, 64}), floats({200, 2, 64}), floats({200, 2, 64}),
        integers({4}, [](size_t i) { return static_cast<int32_t>(i == 0 ? 0 : i == 1 ? 30 : i == 2 ? 31 : 190); }), floats({4})},
       {floats({200, 4, 64})},
       {{"causal", XLA_FFI_DataType_PRED, 0.0f, 0, ""}, {"scale", XLA_FFI_DataType_F32, 0.125f, 0, ""},
        {"sliding_window", XLA_FFI_DataType_S64, 0, 0, ""}, {"soft_cap", XLA_FFI_DataType_F32, 0.0f, 0, ""}}},
  };
}

int main() {
  int failures = 0;
  const auto expect = [&](bool holds, const char* name, const char* what) {
    if (holds) return;
    ++failures;
    std::fprintf(stderr, "%s: %s\n", name, what);
  };
  const std::vector<Call> all = calls();
  for (const Call& call : all) {  // on threads that have no scratch yet
    const std::string name = call.name;
    if (name == "rms_norm" || name == "silu_and_mul" || name == "process_logits") continue;  // they have none
    XLA_FFI_Error_Code code;
    {
      XLA_FFI_ExecutionContext pool(4);
      std::thread caller([&] {
        // What this harness allocates itself comes first; only the kernel meets the limit.
        static thread_local XLA_FFI_Handler* wrapped;
        wrapped = call.kernel;
        Call limited = call;
        limited.kernel = [](XLA_FFI_CallFrame* frame) {
          largest_allocation = 512;
          XLA_FFI_Error* error = wrapped(frame);
          largest_allocation = SIZE_MAX;
          return error;
        };
        run(limited, pool, &code);
      });
      caller.join();
    }
    expect(code == XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, call.name, "no error where there is no memory");
  }
  XLA_FFI_ExecutionContext pool(4), alone(1);
  for (const Call& call : all) {
    XLA_FFI_Error_Code code;
    const auto right = run(call, alone, &code);
    expect(code == XLA_FFI_Error_Code_OK, call.name, "an error alone");
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; ++caller) {
      callers.emplace_back([&] {
        for (int turn = 0; turn < 4; ++turn) {
          XLA_FFI_Error_Code found;
          wrong += run(call, pool, &found) != right || found != XLA_FFI_Error_Code_OK;
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    expect(wrong == 0, call.name, "other bits with several callers than alone");
  }
  std::printf("%zu calls, %d failures\n", all.size(), failures);
  return failures != 0;
}
