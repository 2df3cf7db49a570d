// Somebody else's native addon, as far as the package is concerned: it reads and writes memory by address, from the
// calling thread and from threads that JavaScript knows nothing of.
#include <node_api.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

std::vector<napi_value> arguments(napi_env env, napi_callback_info info) {
  size_t count = 4;
  std::vector<napi_value> values(count);
  napi_get_cb_info(env, info, &count, values.data(), nullptr, nullptr);
  return values;
}

uint64_t number(napi_env env, napi_value value) {
  uint64_t result = 0;
  bool lossless = false;
  napi_get_value_bigint_uint64(env, value, &result, &lossless);
  return result;
}

napi_value bigint(napi_env env, uint64_t value) {
  napi_value result = nullptr;
  napi_create_bigint_uint64(env, value, &result);
  return result;
}

template <typename T>
volatile T* pointer(napi_env env, napi_value value) {
  return reinterpret_cast<volatile T*>(static_cast<uintptr_t>(number(env, value)));
}

// nullDereference(): does not return. It is meant, so no sanitizer has a say in it.
__attribute__((no_sanitize("address", "undefined"))) napi_value NullDereference(napi_env, napi_callback_info) {
  volatile int* volatile nowhere = nullptr;
  *nowhere = 1;
  return nullptr;
}

// load32(address): a plain load, in this thread.
napi_value Load32(napi_env env, napi_callback_info info) {
  return bigint(env, *pointer<uint32_t>(env, arguments(env, info)[0]));
}

// sumFromThreads(address, threads): each of so many native threads loads the uint32 there, all at once; the sum.
napi_value SumFromThreads(napi_env env, napi_callback_info info) {
  const auto values = arguments(env, info);
  volatile uint32_t* address = pointer<uint32_t>(env, values[0]);
  const uint64_t count = number(env, values[1]);
  std::atomic<uint64_t> ready{0}, sum{0};
  std::vector<std::thread> threads;
  for (uint64_t index = 0; index < count; index++) {
    threads.emplace_back([&] {
      ready.fetch_add(1);
      while (ready.load() < count) std::this_thread::yield();
      sum.fetch_add(*address);
    });
  }
  for (auto& thread : threads) thread.join();
  return bigint(env, sum.load());
}

// addFromThreads(address, threads, times): each native thread adds 1 atomically so many times to the int32 there.
napi_value AddFromThreads(napi_env env, napi_callback_info info) {
  const auto values = arguments(env, info);
  auto* address = reinterpret_cast<int32_t*>(static_cast<uintptr_t>(number(env, values[0])));
  const uint64_t count = number(env, values[1]), times = number(env, values[2]);
  std::vector<std::thread> threads;
  for (uint64_t index = 0; index < count; index++) {
    threads.emplace_back([=] {
      for (uint64_t time = 0; time < times; time++) __atomic_fetch_add(address, 1, __ATOMIC_SEQ_CST);
    });
  }
  for (auto& thread : threads) thread.join();
  return nullptr;
}

// move(to, from, length): one memmove; on x86-64 its instructions read and write up to 64 bytes each, on up to four pages.
napi_value Move(napi_env env, napi_callback_info info) {
  const auto values = arguments(env, info);
  std::memmove(reinterpret_cast<void*>(static_cast<uintptr_t>(number(env, values[0]))),
               reinterpret_cast<void*>(static_cast<uintptr_t>(number(env, values[1]))), number(env, values[2]));
  return nullptr;
}

// store64(address, value, times): so many unaligned stores of 8 bytes, of value, value + 1, ...
napi_value Store64(napi_env env, napi_callback_info info) {
  struct __attribute__((packed)) Unaligned { uint64_t value; };
  const auto values = arguments(env, info);
  auto* address = reinterpret_cast<volatile Unaligned*>(static_cast<uintptr_t>(number(env, values[0])));
  const uint64_t first = number(env, values[1]), times = number(env, values[2]);
  for (uint64_t time = 0; time < times; time++) address->value = first + time;
  return nullptr;
}

napi_value Init(napi_env env, napi_value exports) {
  const struct { const char* name; napi_callback call; } functions[] = {
      {"nullDereference", NullDereference}, {"load32", Load32},  {"sumFromThreads", SumFromThreads},
      {"addFromThreads", AddFromThreads},   {"move", Move},      {"store64", Store64},
  };
  for (const auto& function : functions) {
    napi_value value = nullptr;
    napi_create_function(env, function.name, NAPI_AUTO_LENGTH, function.call, nullptr, &value);
    napi_set_named_property(env, exports, function.name, value);
  }
  return exports;
}

}  // namespace

NAPI_MODULE(NODE_GYP_MODULE_NAME, Init)
