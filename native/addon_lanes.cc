// The surface of lanes: the coordinator says whose they are, and hears when there are none any more.
#include <memory>

#include "lanes.h"
#include "napi_help.h"

namespace faultline {
namespace {

// (member, its id, host): [near, far]; host '' if all members are on one machine.
Napi::Value open_lanes(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const uint32_t self = arguments.u32(1);
  const std::string host = arguments.text(2);
  if (!arguments.ok) return arguments.env.Undefined();
  SystemFailure failure;
  const LaneAddresses addresses = lanes_open(*member, self, host, failure);
  if (failure.code != nullptr) throw_system(arguments.env, failure);
  Napi::Array pair = Napi::Array::New(arguments.env, 2);
  pair.Set(0u, addresses.near);
  pair.Set(1u, addresses.far);
  return pair;
}

// (member, slot, id, token)
void expect_peer(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const auto slot = static_cast<uint32_t>(arguments.number(1, kPeerSlots - 1));
  const uint32_t id = arguments.u32(2);
  const uint8_t* token = arguments.bytes(3, 0, kTokenBytes);
  if (arguments.ok) lanes_expect(*member, slot, id, token);
}

// (member, slot, id, address, token)
void connect_peer(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const auto slot = static_cast<uint32_t>(arguments.number(1, kPeerSlots - 1));
  const uint32_t id = arguments.u32(2);
  const std::string address = arguments.text(3);
  const uint8_t* token = arguments.bytes(4, 0, kTokenBytes);
  if (arguments.ok) lanes_connect(*member, slot, id, address, token);
}

void close_peer(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const auto slot = static_cast<uint32_t>(arguments.number(1, kPeerSlots - 1));
  const uint32_t id = arguments.u32(2);
  if (arguments.ok) lanes_close_peer(*member, slot, id);
}

void stop_lanes(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  if (arguments.ok) lanes_stop(*member);
}

Napi::Value connected(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  return Napi::Number::New(arguments.env, arguments.ok ? lanes_connected(*member) : 0);
}

Napi::Value traffic(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const LaneTraffic seen = arguments.ok ? lanes_traffic(*member) : LaneTraffic{};
  Napi::Object out = Napi::Object::New(arguments.env);
  out.Set("messagesSent", static_cast<double>(seen.messages_sent));
  out.Set("messagesReceived", static_cast<double>(seen.messages_received));
  out.Set("bytesSent", static_cast<double>(seen.bytes_sent));
  out.Set("bytesReceived", static_cast<double>(seen.bytes_received));
  return out;
}

// Pages that lanes bring, fetched by a thread of the pool. The region's tables stay while that is in it, and no longer: a job that
// waits for a thread keeps nothing.
class FetchJob final : public Napi::AsyncWorker {
 public:
  FetchJob(Napi::Env env, uint32_t handle, uint64_t first, uint64_t end, uint32_t access)
      : AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)), handle_(handle), page_(first), end_(end), access_(access) {}
  ~FetchJob() override { *self_ = nullptr; }
  Napi::Promise promise() const { return deferred_.Promise(); }
  // nullptr in it: the job is over. For this thread only, which is also where a job ends.
  std::shared_ptr<FetchJob*> self() const { return self_; }

 protected:
  void Execute() override {
    Region* region = region_enter_handle(handle_);
    if (region == nullptr) return;
    lane_fetch(*region, page_, end_, access_, page_);
    region_leave(*region);
  }
  void OnOK() override { deferred_.Resolve(Napi::Number::New(Env(), static_cast<double>(page_))); }
  void OnError(const Napi::Error& error) override { deferred_.Reject(error.Value()); }

 private:
  std::shared_ptr<FetchJob*> self_ = std::make_shared<FetchJob*>(this);
  Napi::Promise::Deferred deferred_;
  const uint32_t handle_;
  uint64_t page_;
  const uint64_t end_;
  const uint32_t access_;
};

// The run (first, count) with this access, at arguments 1 to 3, of the region at 0: by its handle, because the coordinator may give the
// region itself up at any time.
struct Wanted {
  uint32_t handle;
  uint64_t first = 0, end = 0;
  uint32_t access;
  explicit Wanted(Arguments& arguments) : handle(arguments.u32(0)) {
    uint64_t count = 0;
    if (const Region* region = arguments.region(0)) arguments.run(1, region, first, count);
    end = first + count;
    access = arguments.u32(3);
    if (access != kRead && access != kWrite) arguments.fail("ERR_NATIVE_RANGE", "no such access");
  }
};

// (region, first, count, access): the first page of the run that is not here for this access; its end: all are.
Napi::Value first_absent(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const Wanted wanted(arguments);
  if (!arguments.ok) return arguments.env.Undefined();
  uint64_t page = wanted.first;
  if (Region* region = region_enter_handle(wanted.handle)) {
    if (effective_down(*region) == kUp) while (page < wanted.end && is_here(region->pages[page], wanted.access)) page++;
    region_leave(*region);
  }
  return Napi::Number::New(arguments.env, static_cast<double>(page));
}

// (region, first, count, access): [a promise of the page up to which lanes were tried, a function that takes the job back as
// long as no thread has begun with it, and says whether it did].
Napi::Value fetch(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const Wanted wanted(arguments);
  if (!arguments.ok) return arguments.env.Undefined();
  auto* job = new FetchJob(arguments.env, wanted.handle, wanted.first, wanted.end, wanted.access);
  Napi::Array pair = Napi::Array::New(arguments.env, 2);
  pair.Set(0u, job->promise());
  const std::shared_ptr<FetchJob*> self = job->self();
  pair.Set(1u, Napi::Function::New(arguments.env, [self](const Napi::CallbackInfo& call) {
    FetchJob* const pending = *self;
    return Napi::Boolean::New(call.Env(), pending != nullptr && napi_cancel_async_work(call.Env(), *pending) == napi_ok);
  }));
  job->Queue();
  return pair;
}

// ---- blocking calls to the registrar --------------------------------------------------------------------------------

// Also the garbage collector's, and the end's of a thread that is terminated while it waits.
struct HeldCall {
  std::unique_ptr<Call> call;
};

// (member, slot, id, text): the call, or null if there is no lane for it.
Napi::Value call_ask(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const auto slot = static_cast<uint32_t>(arguments.number(1, kPeerSlots - 1));
  const uint32_t id = arguments.u32(2);
  const std::string text = arguments.text(3);
  if (!arguments.ok) return arguments.env.Undefined();
  std::unique_ptr<Call> call = Call::ask(*member, slot, id, text);
  if (call == nullptr) return arguments.env.Null();
  return Napi::External<HeldCall>::New(arguments.env, new HeldCall{std::move(call)}, [](Napi::Env, HeldCall* held) { delete held; });
}

HeldCall* held_call(Arguments& arguments) {
  if (arguments.info_[0].IsExternal()) return arguments.info_[0].As<Napi::External<HeldCall>>().Data();
  arguments.fail("ERR_NATIVE_ARGUMENT", "argument 0 must be a call");
  return nullptr;
}

// (call, ms): the answer; null: not yet; '': it will not come this way.
Napi::Value call_wait(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  HeldCall* held = held_call(arguments);
  const auto ms = static_cast<uint32_t>(arguments.number(1, 60'000));
  if (!arguments.ok) return arguments.env.Undefined();
  std::string text;
  const Call::State state = held->call == nullptr ? Call::State::kGone : held->call->wait(ms, text);
  if (state == Call::State::kWaits) return arguments.env.Null();
  held->call.reset();
  return Napi::String::New(arguments.env, state == Call::State::kAnswered ? text : "");
}

// (call): its answer is not wanted any more.
void call_end(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  HeldCall* held = held_call(arguments);
  if (arguments.ok) held->call.reset();
}

// (member): [serial, the member that asks, text] of each call that has come.
Napi::Value take_calls(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  Napi::Array out = Napi::Array::New(arguments.env);
  if (!arguments.ok) return out;
  uint32_t at = 0;
  for (const ArrivedCall& call : calls_take(*member)) {
    Napi::Array one = Napi::Array::New(arguments.env, 3);
    one.Set(0u, static_cast<double>(call.serial));
    one.Set(1u, call.member);
    one.Set(2u, call.text);
    out.Set(at++, one);
  }
  return out;
}

// (member, serial, text): does anybody still wait for it there?
Napi::Value answer_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const uint64_t serial = arguments.number(1);
  const std::string text = arguments.text(2);
  return Napi::Boolean::New(arguments.env, arguments.ok && call_answer(*member, serial, text));
}

}  // namespace

void init_lanes(Napi::Env env, Napi::Object exports) {
  exports.Set("lanesOpen", Napi::Function::New(env, open_lanes));
  exports.Set("lanesExpect", Napi::Function::New(env, expect_peer));
  exports.Set("lanesConnect", Napi::Function::New(env, connect_peer));
  exports.Set("lanesClosePeer", Napi::Function::New(env, close_peer));
  exports.Set("lanesStop", Napi::Function::New(env, stop_lanes));
  exports.Set("lanesConnected", Napi::Function::New(env, connected));
  exports.Set("firstAbsent", Napi::Function::New(env, first_absent));
  exports.Set("laneFetch", Napi::Function::New(env, fetch));
  exports.Set("callAsk", Napi::Function::New(env, call_ask));
  exports.Set("callWait", Napi::Function::New(env, call_wait));
  exports.Set("callEnd", Napi::Function::New(env, call_end));
  exports.Set("takeCalls", Napi::Function::New(env, take_calls));
  exports.Set("answerCall", Napi::Function::New(env, answer_call));
  exports.Set("laneTraffic", Napi::Function::New(env, traffic));
}

}  // namespace faultline
