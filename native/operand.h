// Which register holds the address of the memory that an x86-64 instruction failed to reach? With the answer a handler
// can point that one instruction, in that one thread, at other memory, and nothing has to be mapped where other threads
// would see it.
#pragma once

#if defined(__x86_64__)

#include <ucontext.h>

#include <cstddef>
#include <cstdint>

namespace faultline {

struct AddressRegister {
  int reg;            // an index into gregs; -1: not found, or not of a kind that may be changed
  bool string_moves;  // a string instruction: it adds to the register itself
};

// The instruction at RIP faulted on `address`. Pure, but for reading the instruction's bytes. The operand's address is
// computed from the decoded fields and compared with `address`, so a wrong decoding gives -1 and never a wrong register.
AddressRegister address_register(const greg_t* gregs, uintptr_t address);

}  // namespace faultline

#endif
