// The surface of pages, for the coordinator: what it does as a member, and as a home.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "attempt.h"
#include "futex.h"
#include "napi_help.h"
#include "reclaim.h"
#include "serve.h"
#include "stamps.h"

namespace faultline {
namespace {

// (region, first, count) at the beginning of nearly all these calls.
struct RunCall {
  explicit RunCall(const Napi::CallbackInfo& info) : arguments(info) {
    region = arguments.region(0);
    if (arguments.ok) arguments.run(1, region, first, count);
    if (arguments.ok && region->pages == nullptr) arguments.fail("ERR_NATIVE_HANDLE", "the region's tables are gone");
  }
  bool ok() const { return arguments.ok; }
  Napi::Value undefined() { return arguments.env.Undefined(); }
  Napi::Value number(uint64_t value) { return Napi::Number::New(arguments.env, static_cast<double>(value)); }

  Arguments arguments;
  Region* region = nullptr;
  uint64_t first = 0;
  uint64_t count = 0;
};

bool is_zero(const uint8_t* bytes, uint64_t length) {
  // Page sizes are multiples of 64, and so are the alignments of what is looked at in place.
  const auto* words = reinterpret_cast<const uint64_t*>(bytes);
  for (uint64_t i = 0; i < length / 8; i += 8) {
    if ((words[i] | words[i + 1] | words[i + 2] | words[i + 3] | words[i + 4] | words[i + 5] | words[i + 6] | words[i + 7]) != 0) return false;
  }
  return true;
}

// Copies one page out of the memfd; pread, because looking at a hole through a mapping would allocate it.
bool copy_out(const Region& region, uint64_t page, uint8_t* to) {
  uint64_t done = 0;
  while (done < region.page_size) {
    const ssize_t got = pread(region.memfd, to + done, region.page_size - done, static_cast<off_t>(page * region.page_size + done));
    if (got <= 0) {
      memset(to + done, 0, region.page_size - done);
      break;
    }
    done += static_cast<uint64_t>(got);
  }
  uint64_t probe;
  memcpy(&probe, to, sizeof probe);
  if (probe != 0) return false;
  if ((reinterpret_cast<uintptr_t>(to) & 7) == 0) return is_zero(to, region.page_size);
  for (uint64_t i = 0; i < region.page_size; i++) if (to[i] != 0) return false;
  return true;
}

void clear_page(Region& region, uint64_t page) {
  if (region.service == nullptr) return;
  const auto offset = static_cast<off_t>(page * region.page_size);
  // A page that nobody wrote here is a hole, and zero already.
  const off_t data = lseek(region.memfd, offset, SEEK_DATA);
  if (data < 0 || data >= offset + static_cast<off_t>(region.page_size)) return;
  memset(region.service + offset, 0, region.page_size);
}

Napi::Value pair(Napi::Env env, uint64_t a, double b) {
  Napi::Array result = Napi::Array::New(env, 2);
  result.Set(0u, static_cast<double>(a));
  result.Set(1u, b);
  return result;
}

// Spins until whoever is BUSY is done (microseconds, unless that thread lost its processor), before a call gives up.
constexpr int kBusySpins = 2000;

template <typename Try>
auto patiently(Try attempt, decltype(attempt()) busy) {
  for (int i = 0;; i++) {
    const auto result = attempt();
    if (result != busy || i == kBusySpins) return result;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

// ---- as a member ---------------------------------------------------------------------------------------------------

Napi::Value claim_run(const Napi::CallbackInfo& info) {
  RunCall call(info);
  const uint32_t access = call.arguments.u32(3);
  uint8_t* out = call.arguments.bytes(4, 0, call.count);
  if (!call.ok()) return call.undefined();
  Region& region = *call.region;
  uint64_t claimed = 0;
  for (uint64_t i = 0; i < call.count; i++) {
    const uint64_t page = call.first + i;
    region.touch(page, kPagesTouched);
    bool ask_home = region.homed_here(page);
    for (int tries = 0;; tries++) {
      Claimed result = patiently([&] { return claim(region.pages[page], access, ask_home); }, Claimed::kBusy);
      if (result == Claimed::kHome) {
        ask_home = open_home(region, page, access);
        continue;
      }
      if (result == Claimed::kReopen) {
        const uint32_t opened = open_run(region, page, 1, open_of(held(region.pages[page].word.load())));
        settle(region, page, finish(region.pages[page], opened));
        // No mapping left: give some back and try again; a region that is not mapped, or down, is as open as can be.
        if (opened == kAsItWas && region.app.load() != 0 && effective_down(region) == kUp && tries < 3) {
          coalesce(region, page);
          continue;
        }
        result = Claimed::kHeld;
      }
      if (result == Claimed::kClaimed) claimed++;
      out[i] = static_cast<uint8_t>(result);
      break;
    }
  }
  return call.number(claimed);
}

Napi::Value held_version(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t page = arguments.ok ? arguments.page(1, region) : 0;
  if (!arguments.ok) return arguments.env.Undefined();
  const PageEntry& entry = region->pages[page];
  return Napi::Number::New(arguments.env, allows(held(entry.word.load())) != 0 ? entry.version.load() : 0);
}

Napi::Value kept_version(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t page = arguments.ok ? arguments.page(1, region) : 0;
  if (!arguments.ok) return arguments.env.Undefined();
  const PageEntry& entry = region->pages[page];
  const uint64_t word = entry.word.load();
  return Napi::Number::New(arguments.env, allows(held(word)) != 0 || (word & kUnacked) != 0 ? entry.version.load() : 0);
}

Napi::Value held_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t page = arguments.ok ? arguments.page(1, region) : 0;
  if (!arguments.ok) return arguments.env.Undefined();
  return Napi::Number::New(arguments.env, held(region->pages[page].word.load()));
}

// (region, first, count, version, grant, content, bytes, byteOffset, out)
Napi::Value install(const Napi::CallbackInfo& info) {
  RunCall call(info);
  const uint32_t version = call.arguments.u32(3);
  const uint32_t grant = call.arguments.u32(4);
  const uint32_t content = call.arguments.u32(5);
  const uint64_t offset = call.arguments.number(7);
  uint8_t* out = call.arguments.bytes(8, 0, call.count);
  const bool has_bytes = content == 0;
  uint8_t* bytes = call.ok() && has_bytes ? call.arguments.bytes(6, offset, call.count * call.region->page_size) : nullptr;
  if (!call.ok()) return call.undefined();
  Region& region = *call.region;
  uint64_t failed = 0;
  for (uint64_t i = 0; i < call.count; i++) {
    const uint64_t page = call.first + i;
    bool was_open = false;
    const InstallStep step = patiently([&] { return begin_install(region.pages[page], version, was_open, false); }, InstallStep::kBusyPage);
    out[i] = static_cast<uint8_t>(step);
    if (step != InstallStep::kBegun) {
      failed++;
      if (step == InstallStep::kDiscarded) region.stats.discarded_pages.fetch_add(1, std::memory_order_relaxed);
      continue;
    }
    // Nobody may see a page that is half written: a copy that is open is closed before new bytes come.
    if (was_open && content != 2) close_run(region, page, 1, kOpenNone);
    if (has_bytes && region.service != nullptr) memcpy(region.service + page * region.page_size, bytes + i * region.page_size, region.page_size);
    if (content == 1) clear_page(region, page);
  }
  // One protection change for each stretch of installed pages, then the words.
  const uint32_t now = clock32();
  for (uint64_t i = 0; i < call.count;) {
    if (out[i] != 0) {
      i++;
      continue;
    }
    uint64_t end = i + 1;
    while (end < call.count && out[end] == 0) end++;
    uint32_t opened = open_run(region, call.first + i, end - i, open_of(grant));
    // What was open has been closed for the new bytes.
    if (opened == kAsItWas && content != 2) opened = kOpenNone;
    stamp(region.id, call.first + i, Stage::kInstalled);
    for (; i < end; i++) settle(region, call.first + i, end_install(region.pages[call.first + i], version, grant, opened, now));
  }
  const uint64_t installed = call.count - failed;
  if (has_bytes) spend_memory(region, installed);
  region.stats.installed_pages.fetch_add(installed, std::memory_order_relaxed);
  if (has_bytes) region.stats.installed_bytes.fetch_add(installed * region.page_size, std::memory_order_relaxed);
  else region.stats.installed_without_bytes.fetch_add(installed, std::memory_order_relaxed);
  return call.number(failed);
}

void abandon_run(const Napi::CallbackInfo& info) {
  RunCall call(info);
  if (!call.ok()) return;
  for (uint64_t page = call.first; page < call.first + call.count; page++) settle(*call.region, page, abandon(call.region->pages[page]));
}

void lose_run(const Napi::CallbackInfo& info) {
  RunCall call(info);
  const uint32_t member = call.arguments.u32(3);
  const uint32_t epoch = call.arguments.u32(4);
  if (!call.ok()) return;
  Region& region = *call.region;
  for (uint64_t page = call.first; page < call.first + call.count; page++) {
    region.touch(page, kPagesTouched);
    After after;
    // BUSY ends by itself; a page must not be left waiting for an answer that never comes.
    while (!lose(region.pages[page], member, epoch, after)) wait_for_busy();
    settle(region, page, after);
  }
}

void find_run(const Napi::CallbackInfo& info) {
  RunCall call(info);
  if (!call.ok()) return;
  Region& region = *call.region;
  std::vector<After> afters(call.count);
  for (uint64_t i = 0; i < call.count; i++) {
    if (region.touched[region.extent_of(call.first + i)].load() & kPagesTouched) afters[i] = find(region.pages[call.first + i]);
  }
  if (region.app.load() != 0) attempt_release(region.app.load() + call.first * region.page_size, call.count * region.page_size);
  unpoison(region, call.first, call.count);
  for (uint64_t i = 0; i < call.count; i++) settle(region, call.first + i, afters[i]);
}

Napi::Value invalidate(const Napi::CallbackInfo& info) {
  RunCall call(info);
  const uint32_t version = call.arguments.u32(3);
  uint8_t* out = call.arguments.bytes(4, 0, call.count);
  if (!call.ok()) return call.undefined();
  Region& region = *call.region;
  const uint32_t now = clock32();
  uint64_t deferred = 0;
  std::vector<uint64_t> closing;
  for (uint64_t i = 0; i < call.count; i++) {
    const CloseStep step = begin_invalidate(region.pages[call.first + i], version, now);
    out[i] = step == CloseStep::kDeferred ? 3 : 0;
    if (step == CloseStep::kDeferred) deferred++;
    if (step == CloseStep::kClose) closing.push_back(call.first + i);
  }
  for (size_t i = 0; i < closing.size();) {
    size_t end = i + 1;
    while (end < closing.size() && closing[end] == closing[end - 1] + 1) end++;
    const uint32_t opened = close_run(region, closing[i], end - i, kOpenNone);
    for (; i < end; i++) settle(region, closing[i], end_close(region.pages[closing[i]], false, false, opened));
  }
  region.stats.invalidated_pages.fetch_add(closing.size(), std::memory_order_relaxed);
  return call.number(deferred);
}

// (region, first, count, version, keep, wantBytes, out, buffer, byteOffset)
Napi::Value recall(const Napi::CallbackInfo& info) {
  RunCall call(info);
  const uint32_t version = call.arguments.u32(3);
  const bool keep = call.arguments.boolean(4);
  const bool want_bytes = call.arguments.boolean(5);
  uint8_t* out = call.arguments.bytes(6, 0, call.count);
  const uint64_t offset = call.arguments.number(8);
  uint8_t* buffer = call.ok() ? call.arguments.bytes(7, offset, call.count * call.region->page_size) : nullptr;
  if (!call.ok()) return call.undefined();
  Region& region = *call.region;
  const uint32_t now = clock32();
  uint64_t deferred = 0;
  for (uint64_t i = 0; i < call.count; i++) {
    const uint64_t page = call.first + i;
    bool bytes = false;
    bool stays = keep;
    const CloseStep step = begin_recall(region.pages[page], version, stays, want_bytes, now, bytes);
    if (step == CloseStep::kDeferred) {
      out[i] = 3;
      deferred++;
      continue;
    }
    uint32_t opened = kOpenNone;
    if (step == CloseStep::kClose) {
      const bool is_open = open(region.pages[page].word.load()) != kOpenNone;
      // To read-only only what was open: what is closed stays closed until somebody needs it.
      if (is_open) opened = close_run(region, page, 1, stays ? kOpenRead : kOpenNone);
    }
    out[i] = 2;
    if (bytes) out[i] = copy_out(region, page, buffer + i * region.page_size) ? 1 : 0;
    if (step == CloseStep::kClose) {
      settle(region, page, end_close(region.pages[page], stays, bytes, opened));
      region.stats.recalled_pages.fetch_add(1, std::memory_order_relaxed);
    }
  }
  return call.number(deferred);
}

Napi::Value downgrade(const Napi::CallbackInfo& info) {
  RunCall call(info);
  const bool to_shared = call.arguments.boolean(3);
  uint8_t* out = call.arguments.bytes(4, 0, call.count);
  if (!call.ok()) return call.undefined();
  Region& region = *call.region;
  const uint32_t now = clock32();
  uint64_t deferred = 0;
  for (uint64_t i = 0; i < call.count; i++) {
    const uint64_t page = call.first + i;
    const CloseStep step = begin_downgrade(region.pages[page], to_shared, now);
    out[i] = step == CloseStep::kDeferred ? 3 : 0;
    if (step == CloseStep::kDeferred) deferred++;
    if (step != CloseStep::kClose) continue;
    uint32_t opened = kOpenNone;
    if (open(region.pages[page].word.load()) != kOpenNone) opened = close_run(region, page, 1, to_shared ? kOpenRead : kOpenNone);
    settle(region, page, end_close(region.pages[page], to_shared, false, opened));
  }
  return call.number(deferred);
}

Napi::Value deferral_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t page = arguments.ok ? arguments.page(1, region) : 0;
  if (!arguments.ok) return arguments.env.Undefined();
  return Napi::Number::New(arguments.env, deferral(region->pages[page], clock32()));
}

void returned_run(const Napi::CallbackInfo& info) {
  RunCall call(info);
  const uint32_t version = call.arguments.u32(3);
  if (!call.ok()) return;
  for (uint64_t page = call.first; page < call.first + call.count; page++) returned(call.region->pages[page], version);
}

Napi::Value drop(const Napi::CallbackInfo& info) {
  RunCall call(info);
  return call.ok() ? call.number(drop_pages(*call.region, call.first, call.count)) : call.undefined();
}

// (region, first, count, most, out)
Napi::Value reclaim(const Napi::CallbackInfo& info) {
  RunCall call(info);
  const uint64_t most = call.arguments.number(3);
  size_t length = 0;
  double* out = call.arguments.doubles(4, 0, length);
  if (!call.ok()) return call.undefined();
  std::vector<OwnedRun> owned;
  const uint64_t next = reclaim_pages(*call.region, call.first, call.count, most, length / 3, owned);
  for (const OwnedRun& run : owned) {
    *out++ = static_cast<double>(run.first);
    *out++ = static_cast<double>(run.count);
    *out++ = run.version;
  }
  return pair(call.arguments.env, next, static_cast<double>(owned.size()));
}

Napi::Value pin_run(const Napi::CallbackInfo& info) {
  RunCall call(info);
  const uint32_t access = call.arguments.u32(3);
  if (!call.ok()) return call.undefined();
  Region& region = *call.region;
  for (uint64_t i = 0; i < call.count; i++) {
    if (pin(region.pages[call.first + i], access)) continue;
    while (i-- > 0) settle(region, call.first + i, unpin(region.pages[call.first + i], access));
    return Napi::Boolean::New(call.arguments.env, false);
  }
  return Napi::Boolean::New(call.arguments.env, true);
}

// (region, first, count): of pinned pages; system calls are to find them, too.
void fill_run_of_holes(const Napi::CallbackInfo& info) {
  RunCall call(info);
  if (call.ok()) fill_holes(*call.region, call.first, call.count);
}

void unpin_run(const Napi::CallbackInfo& info) {
  RunCall call(info);
  const uint32_t access = call.arguments.u32(3);
  if (!call.ok()) return;
  for (uint64_t page = call.first; page < call.first + call.count; page++) settle(*call.region, page, unpin(call.region->pages[page], access));
}

void coalesce_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t page = arguments.ok ? arguments.page(1, region) : 0;
  if (arguments.ok) coalesce(*region, page);
}

Napi::Value holdings(const Napi::CallbackInfo& info) {
  RunCall call(info);
  size_t length = 0;
  double* out = call.arguments.doubles(3, 5, length);
  if (!call.ok()) return call.undefined();
  Region& region = *call.region;
  const size_t most = length / 5;
  size_t records = 0;
  uint64_t page = call.first;
  const uint64_t end = call.first + call.count;
  while (page < end) {
    const uint64_t extent = region.extent_of(page);
    if (!(region.touched[extent].load() & kPagesTouched)) {
      page = (extent + 1) * region.extent_pages;
      continue;
    }
    PageEntry& entry = region.pages[page];
    // Whoever asks builds on what is said here: nothing that an earlier home has granted may come after it.
    while (!void_lane(entry)) wait_for_busy();
    const uint64_t word = entry.word.load();
    const bool unacked = word & kUnacked;
    if (allows(held(word)) != 0 || unacked) {
      double* last = records > 0 ? out + 5 * (records - 1) : nullptr;
      const uint32_t version = entry.version.load();
      if (last != nullptr && last[0] + last[1] == static_cast<double>(page) && last[2] == held(word) && last[3] == version && last[4] == unacked) {
        last[1]++;
      } else {
        if (records == most) break;
        double* at = out + 5 * records++;
        at[0] = static_cast<double>(page);
        at[1] = 1;
        at[2] = held(word);
        at[3] = version;
        at[4] = unacked;
      }
    }
    page++;
  }
  return pair(call.arguments.env, records, static_cast<double>(std::min(page, end)));
}

// ---- as a home -----------------------------------------------------------------------------------------------------

// An extent whose pages are lost unless somebody says otherwise gets its words when one of them is first needed.
void materialise(Region& region, uint64_t page) {
  const uint64_t extent = region.extent_of(page);
  region.touch(page, kDirectoryTouched);
  if (region.homed[extent].load() != kHomedLost) return;
  for (uint64_t i = extent * region.extent_pages; i < std::min(region.page_count, (extent + 1) * region.extent_pages); i++) end(region.directory[i], kGone, 0, 0, 0, false);
  region.homed[extent].store(kHomed);
}

void set_homed(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t first = arguments.number(1);
  const uint64_t count = arguments.number(2);
  const bool homed = arguments.boolean(3);
  const bool lost = arguments.boolean(4);
  if (!arguments.ok) return;
  if (first > region->extent_count || count > region->extent_count - first) return arguments.fail("ERR_NATIVE_RANGE", "no such extents");
  for (uint64_t extent = first; extent < first + count; extent++) {
    // What is lost must be in the words, for whoever gets them next.
    if (!homed && region->homed[extent].load() == kHomedLost) materialise(*region, extent * region->extent_pages);
    region->homed[extent].store(homed ? lost ? kHomedLost : kHomed : kNotHomed);
  }
}

// (region, slices): first page, pages, slot of the home, generation of each.
void set_slices(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  size_t length = 0;
  const double* from = arguments.doubles(1, 0, length);
  if (!arguments.ok) return;
  Slices* slices = slices_make(static_cast<uint32_t>(length / 4));
  if (slices == nullptr) return arguments.fail("ERR_OUT_OF_MEMORY", "no memory for a region's slices");
  for (uint32_t i = 0; i < slices->count; i++) slices->at[i] = {static_cast<uint64_t>(from[4 * i]), static_cast<uint64_t>(from[4 * i + 1]), static_cast<uint32_t>(from[4 * i + 2]), static_cast<uint32_t>(from[4 * i + 3])};
  region_set_slices(*region, slices);
}

Napi::Value is_homed(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t page = arguments.ok ? arguments.page(1, region) : 0;
  if (!arguments.ok) return arguments.env.Undefined();
  return Napi::Boolean::New(arguments.env, region->homed[region->extent_of(page)].load() != kNotHomed);
}

Napi::Value begin_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t page = arguments.ok ? arguments.page(1, region) : 0;
  if (!arguments.ok) return arguments.env.Undefined();
  materialise(*region, page);
  return Napi::Number::New(arguments.env, static_cast<double>(begin(region->directory[page])));
}

void directory(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t page = arguments.ok ? arguments.page(1, region) : 0;
  size_t length = 0;
  double* out = arguments.doubles(2, 7, length);
  if (!arguments.ok) return;
  materialise(*region, page);
  const uint64_t word = region->directory[page].word.load();
  const uint64_t copyset = region->directory[page].copyset.load();
  out[0] = state_of(word);
  out[1] = owner_of(word);
  out[2] = version_of(word);
  out[3] = static_cast<double>(copyset & 0xffffffffu);
  out[4] = static_cast<double>(copyset >> 32);
  out[5] = writer_of(word);
  out[6] = (word & kMigratory) != 0;
}

// (region, page, writer's slot + 1 or 0, migratory)
void hint_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t page = arguments.ok ? arguments.page(1, region) : 0;
  const auto writer = static_cast<uint32_t>(arguments.number(2, 1023));
  const bool migratory = arguments.boolean(3);
  if (!arguments.ok) return;
  materialise(*region, page);
  hint(region->directory[page], writer, migratory);
}

// (region, page, state, owner, version, low, high, keepTxn)
void end_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t page = arguments.ok ? arguments.page(1, region) : 0;
  const auto state = static_cast<uint32_t>(arguments.number(2, 3));
  const auto owner = static_cast<uint32_t>(arguments.number(3, 1022));
  const uint32_t version = arguments.u32(4);
  const uint64_t low = arguments.u32(5);
  const uint64_t high = arguments.u32(6);
  const bool keep = arguments.boolean(7);
  if (!arguments.ok) return;
  materialise(*region, page);
  end(region->directory[page], state, owner, version, low | (high << 32), keep);
}

Napi::Value read_pages(const Napi::CallbackInfo& info) {
  RunCall call(info);
  const uint64_t offset = call.arguments.number(4);
  uint8_t* buffer = call.ok() ? call.arguments.bytes(3, offset, call.count * call.region->page_size) : nullptr;
  uint8_t* out = call.arguments.bytes(5, 0, call.count);
  if (!call.ok()) return call.undefined();
  uint64_t full = 0;
  for (uint64_t i = 0; i < call.count; i++) {
    out[i] = copy_out(*call.region, call.first + i, buffer + i * call.region->page_size);
    full += 1 - out[i];
  }
  return call.number(full);
}

void write_pages(const Napi::CallbackInfo& info) {
  RunCall call(info);
  const uint64_t offset = call.arguments.number(4);
  const uint8_t* bytes = call.ok() ? call.arguments.bytes(3, offset, call.count * call.region->page_size) : nullptr;
  if (call.ok() && call.region->service != nullptr) memcpy(call.region->service + call.first * call.region->page_size, bytes, call.count * call.region->page_size);
}

void zero(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t offset = arguments.number(1);
  const uint64_t length = arguments.number(2);
  if (!arguments.ok) return;
  if (offset > region->size || length > region->size - offset) return arguments.fail("ERR_NATIVE_RANGE", "not in the region");
  if (region->service == nullptr || length == 0) return;
  const uint64_t first = (offset + region->page_size - 1) / region->page_size * region->page_size;
  const uint64_t end = (offset + length) / region->page_size * region->page_size;
  if (first >= end) {
    memset(region->service + offset, 0, length);
    return;
  }
  memset(region->service + offset, 0, first - offset);
  memset(region->service + end, 0, offset + length - end);
  give_memory_back(*region, first, end - first);
}

Napi::Value load32(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t offset = arguments.number(1);
  if (!arguments.ok) return arguments.env.Undefined();
  if (offset % 4 != 0 || offset + 4 > region->size || region->service == nullptr) {
    arguments.fail("ERR_NATIVE_RANGE", "not an int32 of the region");
    return arguments.env.Undefined();
  }
  return Napi::Number::New(arguments.env, __atomic_load_n(reinterpret_cast<const int32_t*>(region->service + offset), __ATOMIC_SEQ_CST));
}

// (region, first, limit, slot, out)
Napi::Value sweep(const Napi::CallbackInfo& info) {
  RunCall call(info);
  const auto slot = static_cast<uint32_t>(call.arguments.number(3, 1022));
  size_t length = 0;
  double* out = call.arguments.doubles(4, 2, length);
  if (!call.ok()) return call.undefined();
  Region& region = *call.region;
  const size_t most = length / 2;
  size_t runs = 0;
  // The coarse bit stands for others, too.
  const uint64_t bit = slot < 63 ? uint64_t{1} << slot : 0;
  uint64_t page = call.first;
  const uint64_t end_page = call.first + call.count;
  while (page < end_page) {
    const uint64_t extent = region.extent_of(page);
    if (!(region.touched[extent].load() & kDirectoryTouched)) {
      page = (extent + 1) * region.extent_pages;
      continue;
    }
    DirectoryEntry& entry = region.directory[page];
    const uint64_t word = entry.word.load();
    if (entry.copyset.load() & bit) entry.copyset.fetch_and(~bit);
    if (state_of(word) == kOwned && owner_of(word) == slot && entry.copyset.load() == 0) {
      double* last = runs > 0 ? out + 2 * (runs - 1) : nullptr;
      if (last != nullptr && last[0] + last[1] == static_cast<double>(page)) {
        last[1]++;
      } else {
        if (runs == most) break;
        out[2 * runs] = static_cast<double>(page);
        out[2 * runs++ + 1] = 1;
      }
      end(entry, kGone, 0, version_of(word), 0, word & kTxn);
    }
    page++;
  }
  return pair(call.arguments.env, runs, static_cast<double>(std::min(page, end_page)));
}

// Records: first, count, state, owner, version, copyset low, copyset high.
Napi::Value directory_records(const Napi::CallbackInfo& info) {
  RunCall call(info);
  size_t length = 0;
  double* out = call.arguments.doubles(3, 7, length);
  if (!call.ok()) return call.undefined();
  Region& region = *call.region;
  const size_t most = length / 7;
  size_t records = 0;
  uint64_t page = call.first;
  const uint64_t end = call.first + call.count;
  while (page < end) {
    const uint64_t extent = region.extent_of(page);
    if (!(region.touched[extent].load() & kDirectoryTouched)) {
      // A lost extent that nobody has asked about yet is lost in the records, too.
      if (region.homed[extent].load() == kHomedLost) {
        materialise(region, page);
        continue;
      }
      page = (extent + 1) * region.extent_pages;
      continue;
    }
    const uint64_t word = region.directory[page].word.load() & ~(kDirectoryFlags | kHints);
    const uint64_t copyset = region.directory[page].copyset.load();
    const bool used = word != 0 || copyset != 0 || region.pages[page].word.load() != 0;
    if (used) {
      double* last = records > 0 ? out + 7 * (records - 1) : nullptr;
      const double values[5] = {static_cast<double>(state_of(word)), static_cast<double>(owner_of(word)), static_cast<double>(version_of(word)), static_cast<double>(copyset & 0xffffffffu), static_cast<double>(copyset >> 32)};
      if (last != nullptr && last[0] + last[1] == static_cast<double>(page) && memcmp(last + 2, values, sizeof values) == 0) {
        last[1]++;
      } else {
        if (records == most) break;
        double* at = out + 7 * records++;
        at[0] = static_cast<double>(page);
        at[1] = 1;
        memcpy(at + 2, values, sizeof values);
      }
    }
    page++;
  }
  return pair(call.arguments.env, records, static_cast<double>(std::min(page, end)));
}

}  // namespace

void init_pages(Napi::Env env, Napi::Object exports) {
  exports.Set("claim", Napi::Function::New(env, claim_run));
  exports.Set("heldVersion", Napi::Function::New(env, held_version));
  exports.Set("keptVersion", Napi::Function::New(env, kept_version));
  exports.Set("held", Napi::Function::New(env, held_call));
  exports.Set("install", Napi::Function::New(env, install));
  exports.Set("abandon", Napi::Function::New(env, abandon_run));
  exports.Set("lose", Napi::Function::New(env, lose_run));
  exports.Set("find", Napi::Function::New(env, find_run));
  exports.Set("invalidate", Napi::Function::New(env, invalidate));
  exports.Set("recall", Napi::Function::New(env, recall));
  exports.Set("downgrade", Napi::Function::New(env, downgrade));
  exports.Set("deferral", Napi::Function::New(env, deferral_call));
  exports.Set("returned", Napi::Function::New(env, returned_run));
  exports.Set("drop", Napi::Function::New(env, drop));
  exports.Set("reclaim", Napi::Function::New(env, reclaim));
  exports.Set("pin", Napi::Function::New(env, pin_run));
  exports.Set("fillHoles", Napi::Function::New(env, fill_run_of_holes));
  exports.Set("unpin", Napi::Function::New(env, unpin_run));
  exports.Set("coalesce", Napi::Function::New(env, coalesce_call));
  exports.Set("holdings", Napi::Function::New(env, holdings));
  exports.Set("setHomed", Napi::Function::New(env, set_homed));
  exports.Set("setSlices", Napi::Function::New(env, set_slices));
  exports.Set("isHomed", Napi::Function::New(env, is_homed));
  exports.Set("begin", Napi::Function::New(env, begin_call));
  exports.Set("directory", Napi::Function::New(env, directory));
  exports.Set("hint", Napi::Function::New(env, hint_call));
  exports.Set("end", Napi::Function::New(env, end_call));
  exports.Set("readPages", Napi::Function::New(env, read_pages));
  exports.Set("writePages", Napi::Function::New(env, write_pages));
  exports.Set("zero", Napi::Function::New(env, zero));
  exports.Set("load32", Napi::Function::New(env, load32));
  exports.Set("sweep", Napi::Function::New(env, sweep));
  exports.Set("directoryRecords", Napi::Function::New(env, directory_records));
}

}  // namespace faultline
