// The addon for the simulator: the production words, transitions, tables, ring, gate and page calls, in one process for
// all members, with time that the simulator sets, threads that it moves one step at a time, and a guard that tells it of
// every change of a mapping. No signal, no real mapping, no second thread.
#include <sys/mman.h>

#include <cstring>
#include <vector>

#include "attempt.h"
#include "futex.h"
#include "napi_help.h"
#include "serve.h"

namespace faultline {
namespace {

uint64_t simulated_now = 0;
Napi::FunctionReference on_guard;
Napi::FunctionReference on_busy;
Napi::FunctionReference on_shortage;
Napi::FunctionReference on_wake;
Napi::FunctionReference on_lane;

// A thread of a member that faults: where the handler's loop stands, and what it sleeps on.
struct Thread {
  Region* region;
  Turn turn;
  Recent recent;
  Streams streams;
  LaneAnswer answer;
  uint64_t begun = 0;
  bool change = false;
  const void* word = nullptr;
};
std::vector<Thread*> threads;

// A question that a page server is in the middle of.
struct Asked {
  Region* region;
  Serving serving;
  bool locked;
};
std::vector<Asked*> asked;

// Where an invariant is found to be broken the simulator throws: the step then goes on to its end without asking it anything more.
bool ask(Napi::FunctionReference& simulator, std::initializer_list<double> arguments) {
  const Napi::Env env = simulator.Env();
  if (env.IsExceptionPending()) return false;
  std::vector<napi_value> values;
  for (const double argument : arguments) values.push_back(Napi::Number::New(env, argument));
  const Napi::Value answer = simulator.Call(values);
  return !env.IsExceptionPending() && answer.IsBoolean() && answer.As<Napi::Boolean>();
}

class SimulatedGuard final : public Guard {
 public:
  bool set(const Region& region, uint64_t first, uint64_t count, uint32_t open) override {
    ask(on_guard, {static_cast<double>(region.handle), static_cast<double>(first), static_cast<double>(count), static_cast<double>(open)});
    return true;
  }
};

SimulatedGuard& guard() {
  static SimulatedGuard one;
  return one;
}

void sleep_on(Thread& thread, const void* word, uint32_t expected) {
  if (__atomic_load_n(static_cast<const uint32_t*>(word), __ATOMIC_SEQ_CST) == expected) thread.word = word;
}

Thread* thread_at(Arguments& arguments) {
  const uint64_t index = arguments.number(0);
  if (arguments.ok && (index >= threads.size() || threads[index] == nullptr)) arguments.fail("ERR_NATIVE_HANDLE", "no such thread");
  return arguments.ok ? threads[index] : nullptr;
}

// ---- calls of lib/native.ts that the machine's addon has with real memory and threads ------------------------------

Napi::Value create_member(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  std::string error;
  const uint32_t handle = member_create(arguments.text(0), error);
  if (handle == 0) arguments.fail(error.c_str(), "the member can't be made");
  return Napi::Number::New(info.Env(), handle);
}

void stop_member(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  if (member != nullptr) member_stopped(*member);
}

void set_down(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const uint32_t down = arguments.u32(1);
  if (arguments.ok) member_down(*member, down, "");
}

Napi::Value drain(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  size_t length = 0;
  double* out = arguments.doubles(1, 5, length);
  uint32_t count = 0;
  RingRecord record;
  while (arguments.ok && count < length / 5 && member->ring.pop(record)) {
    double* at = out + 5 * count++;
    at[0] = record.kind;
    at[1] = record.region;
    at[2] = static_cast<double>(record.page);
    at[3] = record.access;
    at[4] = record.version;
  }
  if (arguments.ok && count == 0) member->ring.sleep();
  return Napi::Number::New(info.Env(), count);
}

Napi::Value ring_ready(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  return Napi::Boolean::New(info.Env(), arguments.ok && !member->ring.empty());
}

Napi::Value gate_close(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  return Napi::Boolean::New(info.Env(), arguments.ok && member->gate.close());
}

Napi::Value gate_drained(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  return Napi::Boolean::New(info.Env(), arguments.ok && member->gate.drained());
}

void gate_open(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  if (arguments.ok) member->gate.open();
}

// (member, id, size, pageSize, extentPages)
Napi::Value create_region(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const uint32_t member = arguments.u32(0);
  const RegionSpec spec{arguments.u32(1), "simulated", arguments.number(2), arguments.number(3), arguments.number(4)};
  SystemFailure failure;
  Region* region = arguments.ok ? region_create(member, spec, failure) : nullptr;
  // Any address will do: nothing is mapped there, and no two are the same.
  static uintptr_t address = uintptr_t{1} << 46;
  address += uintptr_t{1} << 32;
  if (arguments.ok && (region == nullptr || !region_map(*region, address, failure))) arguments.fail(failure.code, failure.syscall);
  return Napi::Number::New(info.Env(), arguments.ok ? region->handle.load() : 0);
}

void release_region(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  if (region == nullptr) return;
  for (Thread*& thread : threads) {
    if (thread == nullptr || thread->region != region) continue;
    delete thread;
    thread = nullptr;
  }
  region_release(*region);
}

// ---- the simulator's own -------------------------------------------------------------------------------------------

void set_clock(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  simulated_now = arguments.number(0);
}

// The bytes of a region at its member, as its app view would show them.
Napi::Value view(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  if (!arguments.ok) return info.Env().Undefined();
  return Napi::ArrayBuffer::New(info.Env(), region->service, region->size);
}

Napi::Value create_thread(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  if (!arguments.ok) return info.Env().Undefined();
  auto* thread = new Thread{};
  thread->region = region;
  size_t index = 0;
  while (index < threads.size() && threads[index] != nullptr) index++;
  if (index == threads.size()) threads.push_back(nullptr);
  threads[index] = thread;
  return Napi::Number::New(info.Env(), static_cast<double>(index));
}

// (thread, page, access, ran, own): the instruction trapped; `ran`: another one has run since the last trap.
void trap(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Thread* thread = thread_at(arguments);
  const uint64_t page = arguments.number(1);
  const uint32_t access = arguments.u32(2);
  const bool ran = arguments.boolean(3);
  const uint32_t own = arguments.u32(4);
  if (!arguments.ok) return;
  if (effective_down(*thread->region) == kUp) hold_recent(thread->recent, *thread->region, page, ran, own, static_cast<uint32_t>(now_us()));
  thread->turn = Turn{};
  thread->turn.page = page;
  thread->turn.access = access;
  thread->turn.streams = &thread->streams;
  thread->change = false;
  thread->word = nullptr;
}

// (thread, page, backwards): as if the faults before had come in these steps, the next of which is at the page.
void set_stream(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Thread* thread = thread_at(arguments);
  const uint64_t page = arguments.number(1);
  const bool backwards = arguments.boolean(2);
  if (!arguments.ok) return;
  Streams& streams = thread->streams;
  streams.at[0] = {thread->region, backwards ? page + 1 : page - 1, backwards ? -1 : 1, 2, streams.turn};
}

// One step of the handler's loop: a Next, or 255 while it sleeps.
Napi::Value step(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Thread* thread = thread_at(arguments);
  if (!arguments.ok) return info.Env().Undefined();
  if (thread->word != nullptr) return Napi::Number::New(info.Env(), 255);
  Region& region = *thread->region;
  Next next;
  if (thread->change) {
    thread->change = false;
    next = serve_change(region, thread->turn);
  } else {
    next = serve_look(region, thread->turn);
  }
  if (next == Next::kChange) thread->change = true;
  if (next == Next::kWait) sleep_on(*thread, &region.pages[thread->turn.page].word, thread->turn.futex);
  if (next == Next::kMappings) sleep_on(*thread, &region.coalesce_turn, thread->turn.futex);
  if (next == Next::kFrozen) sleep_on(*thread, &region.member->down, kFrozen);
  return Napi::Number::New(info.Env(), static_cast<double>(next));
}

// ---- lanes ---------------------------------------------------------------------------------------------------------

// (thread, first, end, access): claims what a prefetch of these pages can ask for over one lane. false: nothing.
Napi::Value ask_ahead(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Thread* thread = thread_at(arguments);
  uint64_t page = arguments.number(1);
  const uint64_t end = arguments.number(2);
  const uint32_t access = arguments.u32(3);
  if (!arguments.ok) return info.Env().Undefined();
  thread->turn = Turn{};
  thread->change = false;
  thread->word = nullptr;
  return Napi::Boolean::New(info.Env(), effective_down(*thread->region) == kUp && lane_ask_ahead(*thread->region, page, end, access, thread->turn.lane));
}

Napi::Value lane_question(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Thread* thread = thread_at(arguments);
  if (!arguments.ok) return info.Env().Undefined();
  const LaneTurn& turn = thread->turn.lane;
  thread->turn.waited = true;
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("slot", turn.slot);
  result.Set("question", Napi::Buffer<uint8_t>::Copy(info.Env(), reinterpret_cast<const uint8_t*>(&turn.question), sizeof turn.question));
  result.Set("first", static_cast<double>(turn.question.page));
  result.Set("access", turn.question.access);
  result.Set("count", turn.question.count);
  result.Set("hop", turn.hop);
  return result;
}

// (thread): did its last question make somebody give copies up?
Napi::Value lane_retired(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Thread* thread = thread_at(arguments);
  return Napi::Boolean::New(info.Env(), arguments.ok && thread->turn.lane.retire && thread->turn.lane.granted > 0);
}

Napi::Value install_lane(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Thread* thread = thread_at(arguments);
  const uint8_t* head = arguments.bytes(1, 0, sizeof(LaneAnswer));
  if (!arguments.ok) return info.Env().Undefined();
  memcpy(&thread->answer, head, sizeof thread->answer);
  lane_install(*thread->region, thread->turn.lane, thread->answer, thread->begun);
  Napi::Array thanks = Napi::Array::New(info.Env());
  for (uint32_t i = 0; thread->turn.lane.hop && i < thread->turn.lane.question.count; i++) {
    if (!(thread->begun >> i & 1)) continue;
    const LaneQuestion one = lane_thanks(thread->turn.lane, thread->answer, i);
    thanks.Set(thanks.Length(), Napi::Buffer<uint8_t>::Copy(info.Env(), reinterpret_cast<const uint8_t*>(&one), sizeof one));
  }
  return thanks;
}

void finish_lane(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Thread* thread = thread_at(arguments);
  if (arguments.ok) lane_finish(*thread->region, thread->turn.lane, thread->answer, thread->begun);
}

void give_up_lane(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Thread* thread = thread_at(arguments);
  if (arguments.ok) lane_give_up(*thread->region, thread->turn.lane, lane_put_back);
}

// (region, slot, question)
Napi::Value begin_serving(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint32_t slot = arguments.u32(1);
  const uint8_t* question = arguments.bytes(2, 0, sizeof(LaneQuestion));
  if (!arguments.ok) return info.Env().Undefined();
  auto* one = new Asked{region, {}, false};
  one->serving.slot = slot;
  memcpy(&one->serving.question, question, sizeof(LaneQuestion));
  one->locked = serve_begin(*region, one->serving);
  size_t index = 0;
  while (index < asked.size() && asked[index] != nullptr) index++;
  if (index == asked.size()) asked.push_back(nullptr);
  asked[index] = one;
  return Napi::Number::New(info.Env(), static_cast<double>(index));
}

// (thread, slot, question): the page server's own turn, kept in that thread's place. false: it can't ask the owner.
Napi::Value hop_for(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Thread* thread = thread_at(arguments);
  const uint32_t slot = arguments.u32(1);
  const uint8_t* question = arguments.bytes(2, 0, sizeof(LaneQuestion));
  if (!arguments.ok) return info.Env().Undefined();
  Serving serving;
  serving.slot = slot;
  memcpy(&serving.question, question, sizeof(LaneQuestion));
  thread->turn = Turn{};
  return Napi::Boolean::New(info.Env(), serve_hop(*thread->region, serving, thread->turn.lane));
}

Asked* asked_at(Arguments& arguments) {
  const uint64_t index = arguments.number(0);
  if (arguments.ok && (index >= asked.size() || asked[index] == nullptr)) arguments.fail("ERR_NATIVE_HANDLE", "no such question");
  return arguments.ok ? asked[index] : nullptr;
}

Napi::Value is_locked(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Asked* one = asked_at(arguments);
  return Napi::Boolean::New(info.Env(), arguments.ok && one->locked);
}

Napi::Value finish_serving(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Asked* one = asked_at(arguments);
  if (!arguments.ok) return info.Env().Undefined();
  if (one->locked) serve_finish(*one->region, one->serving);
  const Napi::Value head = Napi::Buffer<uint8_t>::Copy(info.Env(), reinterpret_cast<const uint8_t*>(&one->serving.answer), sizeof(LaneAnswer));
  asked[static_cast<size_t>(info[0].As<Napi::Number>().Int64Value())] = nullptr;
  delete one;
  return head;
}

void take_returned(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint32_t slot = arguments.u32(1);
  const uint8_t* bytes = arguments.bytes(2, 0, sizeof(LaneQuestion));
  if (!arguments.ok) return;
  LaneQuestion question;
  memcpy(&question, bytes, sizeof question);
  serve_returned(*region, slot, question);
}

Napi::Value lane_bytes(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const uint8_t* asked_for = arguments.bytes(0, 0, sizeof(LaneQuestion));
  const uint8_t* head = arguments.bytes(1, 0, sizeof(LaneAnswer));
  Napi::Array pages = Napi::Array::New(info.Env());
  if (!arguments.ok) return pages;
  LaneQuestion question;
  LaneAnswer answer;
  memcpy(&question, asked_for, sizeof question);
  memcpy(&answer, head, sizeof answer);
  for (uint32_t i = 0; i < answer.granted && answer.content == kLaneBytesFollow; i++) pages.Set(i, static_cast<double>(question.page) + static_cast<double>(question.stride) * i);
  return pages;
}

void set_lane(const Napi::CallbackInfo& info) { on_lane = Napi::Persistent(info[0].As<Napi::Function>()); }

Napi::Value is_asleep(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Thread* thread = thread_at(arguments);
  return Napi::Boolean::New(info.Env(), arguments.ok && thread->word != nullptr);
}

// A futex wait whose time is over, or a signal.
void wake_up(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Thread* thread = thread_at(arguments);
  if (arguments.ok) thread->word = nullptr;
}

void set_guard(const Napi::CallbackInfo& info) { on_guard = Napi::Persistent(info[0].As<Napi::Function>()); }
void set_wake(const Napi::CallbackInfo& info) { on_wake = Napi::Persistent(info[0].As<Napi::Function>()); }
void set_shortage(const Napi::CallbackInfo& info) { on_shortage = Napi::Persistent(info[0].As<Napi::Function>()); }
void set_busy(const Napi::CallbackInfo& info) { on_busy = Napi::Persistent(info[0].As<Napi::Function>()); }

// [page word low, high, version, poison, directory low, high, copyset low, high]: for reports.
Napi::Value words(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t page = arguments.ok ? arguments.page(1, region) : 0;
  if (!arguments.ok) return info.Env().Undefined();
  const PageEntry& entry = region->pages[page];
  const DirectoryEntry& directory = region->directory[page];
  const uint64_t values[] = {entry.word.load() & 0xffffffff, entry.word.load() >> 32, entry.version.load(), entry.poison.load(),
                             directory.word.load() & 0xffffffff, directory.word.load() >> 32, directory.copyset.load() & 0xffffffff, directory.copyset.load() >> 32};
  Napi::Array result = Napi::Array::New(info.Env(), 8);
  for (uint32_t i = 0; i < 8; i++) result.Set(i, static_cast<double>(values[i]));
  return result;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  const auto set = [&](const char* name, auto function) { exports.Set(name, Napi::Function::New(env, function)); };
  set("memberCreate", create_member);
  set("memberStopped", stop_member);
  set("memberDown", set_down);
  set("drain", drain);
  set("gateClose", gate_close);
  set("gateDrained", gate_drained);
  set("gateOpen", gate_open);
  set("regionCreate", create_region);
  set("regionRelease", release_region);
  set("setClock", set_clock);
  set("view", view);
  set("threadCreate", create_thread);
  set("threadTrap", trap);
  set("threadStream", set_stream);
  set("threadStep", step);
  set("threadAsleep", is_asleep);
  set("threadWake", wake_up);
  set("onGuard", set_guard);
  set("onBusy", set_busy);
  set("onShortage", set_shortage);
  set("onWake", set_wake);
  set("laneAskAhead", ask_ahead);
  set("laneRetired", lane_retired);
  set("laneQuestion", lane_question);
  set("laneInstall", install_lane);
  set("laneFinish", finish_lane);
  set("laneGiveUp", give_up_lane);
  set("serveBegin", begin_serving);
  set("serveHop", hop_for);
  set("serveLocked", is_locked);
  set("serveFinish", finish_serving);
  set("serveReturned", take_returned);
  set("laneBytes", lane_bytes);
  set("onLane", set_lane);
  set("ringReady", ring_ready);
  set("words", words);
  init_pages(env, exports);
  return exports;
}

}  // namespace

uint64_t now_us() { return simulated_now; }
void futex_wait(const void*, uint32_t, int64_t) {}
void futex_wake(const void* word) {
  for (size_t i = 0; i < threads.size(); i++) {
    if (threads[i] == nullptr || threads[i]->word != word) continue;
    threads[i]->word = nullptr;
    ask(on_wake, {static_cast<double>(i)});
  }
}
bool simulation_refuses(const Region& region, uint64_t first, uint64_t count, uint32_t wanted) {
  return ask(on_shortage, {static_cast<double>(region.handle), static_cast<double>(first), static_cast<double>(count), static_cast<double>(wanted)});
}
void wait_for_busy() { ask(on_busy, {}); }

// What stands for a lane is nothing: who uses it is known by its thread.
void* lane_take(Region& region, uint32_t slot) {
  static char lane;
  return ask(on_lane, {static_cast<double>(region.handle), static_cast<double>(slot)}) ? &lane : nullptr;
}
void lane_put_back(Region&, void*) {}

Guard& guard_mprotect() { return guard(); }
Guard& guard_unmapped() { return guard(); }
Guard& guard_userfaultfd() { return guard(); }
int userfaultfd_watch(uintptr_t, uint64_t, const char*&, bool) { return -1; }
Proxies* proxies_start(Region&, SystemFailure&) { return nullptr; }
bool proxies_stop(Proxies*) { return true; }
void fault_install_bus() {}
int attempt_release(uintptr_t, size_t) { return 0; }

NODE_API_MODULE(simulation, init)

}  // namespace faultline
