// Arguments in, errors out: what every function of the addon's surface needs.
#pragma once

#include <napi.h>

#include <cstring>
#include <string>

#include "member.h"
#include "region.h"

namespace faultline {

inline void throw_code(Napi::Env env, const char* code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  error.ThrowAsJavaScriptException();
}

inline void throw_system(Napi::Env env, const SystemFailure& failure) {
  Napi::Error error = Napi::Error::New(env, std::string(failure.syscall) + (failure.error != 0 ? std::string(": ") + strerror(failure.error) : std::string(failure.code)));
  error.Set("code", Napi::String::New(env, failure.code));
  error.Set("errno", Napi::Number::New(env, failure.error));
  error.Set("syscall", Napi::String::New(env, failure.syscall));
  error.ThrowAsJavaScriptException();
}

// Reads the arguments of one call; after a bad one `ok` is false and an exception is pending.
class Arguments {
 public:
  explicit Arguments(const Napi::CallbackInfo& info) : info_(info), env(info.Env()) {}

  // A whole number from 0 to `most`.
  uint64_t number(size_t index, double most = 9007199254740991.0) {
    if (!ok) return 0;
    const Napi::Value value = info_[index];
    const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
    if (!(number >= 0 && number <= most) || number != static_cast<double>(static_cast<uint64_t>(number))) {
      fail("ERR_NATIVE_ARGUMENT", "argument " + std::to_string(index) + " must be a whole number from 0 to " + std::to_string(most));
      return 0;
    }
    return static_cast<uint64_t>(number);
  }
  uint32_t u32(size_t index) { return static_cast<uint32_t>(number(index, 4294967295.0)); }
  bool boolean(size_t index) { return ok && info_[index].IsBoolean() && info_[index].As<Napi::Boolean>().Value(); }
  std::string text(size_t index) {
    if (!ok) return "";
    if (!info_[index].IsString()) {
      fail("ERR_NATIVE_ARGUMENT", "argument " + std::to_string(index) + " must be a string");
      return "";
    }
    return info_[index].As<Napi::String>().Utf8Value();
  }
  Member* member(size_t index) {
    const uint32_t handle = u32(index);
    Member* member = ok ? member_at(handle) : nullptr;
    if (ok && member == nullptr) fail("ERR_NATIVE_HANDLE", "no such member");
    return member;
  }
  Region* region(size_t index) {
    const uint32_t handle = u32(index);
    Region* region = ok ? region_at(handle) : nullptr;
    if (ok && region == nullptr) fail("ERR_NATIVE_HANDLE", "no such region");
    return region;
  }
  uint64_t page(size_t index, const Region* region) {
    const uint64_t page = number(index);
    if (ok && page >= region->page_count) fail("ERR_NATIVE_RANGE", "no such page");
    return page;
  }
  // The run (first, count) at index, index + 1.
  void run(size_t index, const Region* region, uint64_t& first, uint64_t& count) {
    first = number(index);
    count = number(index + 1);
    if (ok && (first > region->page_count || count > region->page_count - first)) fail("ERR_NATIVE_RANGE", "the run of pages is not in the region");
  }
  // The bytes [offset, offset + length) of a Uint8Array, or nullptr.
  uint8_t* bytes(size_t index, uint64_t offset, uint64_t length) {
    if (!ok) return nullptr;
    const Napi::Value value = info_[index];
    if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
      fail("ERR_NATIVE_ARGUMENT", "argument " + std::to_string(index) + " must be a Uint8Array");
      return nullptr;
    }
    auto array = value.As<Napi::Uint8Array>();
    if (offset > array.ByteLength() || length > array.ByteLength() - offset) {
      fail("ERR_NATIVE_RANGE", "argument " + std::to_string(index) + " is too short");
      return nullptr;
    }
    return array.Data() + offset;
  }
  double* doubles(size_t index, size_t least, size_t& count) {
    if (!ok) return nullptr;
    const Napi::Value value = info_[index];
    if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float64_array || value.As<Napi::TypedArray>().ElementLength() < least) {
      fail("ERR_NATIVE_ARGUMENT", "argument " + std::to_string(index) + " must be a Float64Array of at least " + std::to_string(least));
      return nullptr;
    }
    count = value.As<Napi::TypedArray>().ElementLength();
    auto array = value.As<Napi::Float64Array>();
    return array.Data();
  }
  void fail(const char* code, const std::string& message) {
    if (ok) throw_code(env, code, message);
    ok = false;
  }

  const Napi::CallbackInfo& info_;
  Napi::Env env;
  bool ok = true;
};

void init_member(Napi::Env env, Napi::Object exports);
void init_region(Napi::Env env, Napi::Object exports);
void init_pages(Napi::Env env, Napi::Object exports);
void init_lanes(Napi::Env env, Napi::Object exports);
void init_stamps(Napi::Env env, Napi::Object exports);

}  // namespace faultline
