// The operand decoder on arbitrary instruction bytes and registers. Input: 16 registers from a few bytes each, where the
// fault was, then the instruction. Checked: it reads nothing beyond the 15 bytes that an instruction may have (the code
// ends where its allocation ends, so AddressSanitizer sees it), names only registers that it may change, and names a
// register through which the address really is reached: move both alike, and the answer is the same.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "../../native/operand.h"

using namespace faultline;

namespace {

constexpr size_t kLongestInstruction = 15;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "operand: %s\n", what);
  abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kState = 17 * 2;
  if (size < kState + 1) return 0;
  greg_t gregs[NGREG] = {};
  const auto word = [&](size_t i) { return static_cast<uint64_t>(data[2 * i]) | static_cast<uint64_t>(data[2 * i + 1]) << 8; };
  // Registers lie near one another, so that sums of them often reach the address.
  constexpr uint64_t kBase = 0x7e0000000000;
  for (size_t i = 0; i < 16; i++) gregs[i] = static_cast<greg_t>((word(i) & 1) ? kBase + word(i) : word(i));
  const uintptr_t address = kBase + word(16);

  const size_t length = size - kState < kLongestInstruction ? size - kState : kLongestInstruction;
  // A processor that met fewer bytes than the instruction has would have faulted on fetching them, so short inputs are
  // filled up with zeros.
  const std::unique_ptr<uint8_t[]> code(new uint8_t[kLongestInstruction]());
  memcpy(code.get(), data + kState, length);
  gregs[REG_RIP] = reinterpret_cast<greg_t>(code.get());

  const AddressRegister found = address_register(gregs, address);
  if (found.reg == -1) return 0;
  require(found.reg >= REG_R8 && found.reg <= REG_RCX, "a register that is not a general one");
  require(found.reg != REG_RSP, "the stack pointer");
  greg_t moved[NGREG];
  memcpy(moved, gregs, sizeof moved);
  constexpr uint64_t kElsewhere = 0x10000000;
  moved[found.reg] = static_cast<greg_t>(static_cast<uint64_t>(moved[found.reg]) + kElsewhere);
  const AddressRegister again = address_register(moved, address + kElsewhere);
  // A string instruction whose other register happens to be there can't be told apart any more: not found then.
  require((again.reg == found.reg && again.string_moves == found.string_moves) || (found.string_moves && again.reg == -1), "the address does not follow its register");
  const AddressRegister still = address_register(moved, address);
  require(still.reg != found.reg, "the address is reached without its register");
  return 0;
}
