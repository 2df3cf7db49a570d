#include "operand.h"

#if defined(__x86_64__)

namespace faultline {
namespace {

// No instruction that handlers meet reads or writes more at one address (XSAVE and its like aside: not found then).
constexpr uintptr_t kOperandBytes = 64;
// The longest instruction that a processor takes.
constexpr size_t kInstructionBytes = 15;

// gregs by the number that the encoding gives a register.
constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
constexpr AddressRegister kNotFound = {-1, false};

bool covers(uint64_t operand, uintptr_t address) { return address - operand < kOperandBytes; }

bool is_prefix(uint8_t byte) {
  // Operand size, LOCK, REPNE, REP, and the segments that mean nothing in 64-bit mode. FS, GS (0x64, 0x65) and the
  // address size (0x67) are left out on purpose: such an operand is not found.
  return byte == 0x66 || byte == 0xf0 || byte == 0xf2 || byte == 0xf3 || byte == 0x26 || byte == 0x2e ||
         byte == 0x36 || byte == 0x3e;
}

// Opcodes of the one-byte map that are followed by a ModRM byte.
bool has_modrm(uint8_t opcode) {
  if (opcode < 0x40) return (opcode & 7) < 4;
  return opcode == 0x63 || opcode == 0x69 || opcode == 0x6b || (opcode >= 0x80 && opcode <= 0x8f) || opcode == 0xc0 ||
         opcode == 0xc1 || opcode == 0xc6 || opcode == 0xc7 || (opcode >= 0xd0 && opcode <= 0xd3) ||
         (opcode >= 0xd8 && opcode <= 0xdf) || opcode == 0xf6 || opcode == 0xf7 || opcode == 0xfe || opcode == 0xff;
}

// MOVS, CMPS, STOS, LODS, SCAS.
AddressRegister string_register(uint8_t opcode, const greg_t* gregs, uintptr_t address) {
  const bool uses_rsi = opcode <= 0xa7 || opcode == 0xac || opcode == 0xad;
  const bool uses_rdi = opcode != 0xac && opcode != 0xad;
  const bool rsi = uses_rsi && covers(static_cast<uint64_t>(gregs[REG_RSI]), address);
  const bool rdi = uses_rdi && covers(static_cast<uint64_t>(gregs[REG_RDI]), address);
  if (rsi == rdi) return kNotFound;  // neither, or no telling which
  return {rsi ? REG_RSI : REG_RDI, true};
}

bool is_gather_or_scatter(int map, uint8_t opcode) {
  return map == 2 && ((opcode >= 0x90 && opcode <= 0x93) || (opcode >= 0xa0 && opcode <= 0xa3) || opcode == 0xc6 ||
                      opcode == 0xc7);
}

// The instruction's bytes, one after the other. Beyond the longest instruction there are zeros: the page that follows
// need not be mapped, and a handler must not fault by itself.
class Code {
 public:
  explicit Code(const greg_t* gregs) : bytes_(reinterpret_cast<const uint8_t*>(gregs[REG_RIP])) {}
  uint8_t peek(size_t ahead = 0) const { return at_ + ahead < kInstructionBytes ? bytes_[at_ + ahead] : 0; }
  uint8_t next() {
    const uint8_t byte = peek();
    at_++;
    return byte;
  }
  void skip(size_t count) { at_ += count; }
  bool overrun() const { return at_ > kInstructionBytes; }

 private:
  const uint8_t* bytes_;
  size_t at_ = 0;
};

}  // namespace

AddressRegister address_register(const greg_t* gregs, uintptr_t address) {
  Code code(gregs);
  while (is_prefix(code.peek())) code.skip(1);

  // The bits that extend the base and the index, and the opcode with its map.
  unsigned base_high = 0;
  unsigned index_high = 0;
  bool scaled_displacement = false;
  int map = 0;
  const uint8_t first = code.peek();
  if (first == 0xc5) {
    map = 1;
    code.skip(2);
  } else if (first == 0xc4 || first == 0x62) {
    const uint8_t second = code.peek(1);
    scaled_displacement = first == 0x62;
    base_high = (second & 0x20) != 0 ? 0 : 8;
    index_high = (second & 0x40) != 0 ? 0 : 8;
    map = second & 7;
    code.skip(scaled_displacement ? 4 : 3);
  } else {
    if ((first & 0xf0) == 0x40) {
      base_high = (first & 1) != 0 ? 8 : 0;
      index_high = (first & 2) != 0 ? 8 : 0;
      code.skip(1);
    }
    if (code.peek() == 0x0f) {
      const uint8_t second = code.peek(1);
      map = second == 0x38 ? 2 : second == 0x3a ? 3 : 1;
      code.skip(map == 1 ? 1 : 2);
    }
  }
  const uint8_t opcode = code.next();
  if (map == 0 && ((opcode >= 0xa4 && opcode <= 0xa7) || (opcode >= 0xaa && opcode <= 0xaf))) {
    return string_register(opcode, gregs, address);
  }
  if (map == 0 && !has_modrm(opcode)) return kNotFound;
  if (is_gather_or_scatter(map, opcode)) return kNotFound;

  const uint8_t modrm = code.next();
  const unsigned mode = modrm >> 6;
  unsigned base = modrm & 7;
  if (mode == 3) return kNotFound;               // no memory operand
  if (mode == 0 && base == 5) return kNotFound;  // relative to RIP
  uint64_t operand = 0;
  unsigned index = 16;  // none
  if (base == 4) {
    const uint8_t sib = code.next();
    base = sib & 7;
    if (mode == 0 && base == 5) return kNotFound;  // no base
    const unsigned scaled = ((sib >> 3) & 7) | index_high;
    if (scaled != 4) {
      index = scaled;
      operand += static_cast<uint64_t>(gregs[kRegisters[index]]) << (sib >> 6);
    }
  }
  base |= base_high;
  if (base == 4 || base == index) return kNotFound;  // the stack pointer; or added twice
  operand += static_cast<uint64_t>(gregs[kRegisters[base]]);

  if (mode == 2) {
    uint32_t displacement = 0;
    for (int shift = 0; shift < 32; shift += 8) displacement |= static_cast<uint32_t>(code.next()) << shift;
    operand += static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(displacement)));
  }
  const auto short_displacement = mode == 1 ? static_cast<int8_t>(code.next()) : int8_t{0};
  if (code.overrun()) return kNotFound;
  if (mode != 1) return covers(operand, address) ? AddressRegister{kRegisters[base], false} : kNotFound;
  // EVEX scales a short displacement by the operand's size, which only the opcode tells: any that fits will do, since
  // the base is the same for all.
  const auto displacement = static_cast<uint64_t>(int64_t{short_displacement});
  for (unsigned scale = 1; scale <= (scaled_displacement ? kOperandBytes : 1); scale *= 2) {
    if (covers(operand + displacement * scale, address)) return {kRegisters[base], false};
  }
  return kNotFound;
}

}  // namespace faultline

#endif
