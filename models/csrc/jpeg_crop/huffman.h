// Entropy-coded data of a baseline JPEG file.
//
// One look-up gives a code and the bits of its value together if both have at most kPeek bits.
// Blocks that are not needed are skipped with another table, whose entries hold as many symbols as
// fit into kPeek bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "jpeg_crop/header.h"

namespace opus {
namespace jpeg_crop {

constexpr int kPeek = 11;
// Steps along the zigzag: one past the end of a block, and an invalid code.
constexpr int kEndOfBlock = 128, kBadCode = 64;
// Bits of the longest code and of the longest values after it, for 8-bit images.
constexpr int kMaxCode = 16, kMaxDcValue = 11, kMaxAcValue = 10;
// Bytes past the data that may be read: more than the largest MCU of six blocks.
constexpr size_t kPadding = 2048;

// Reader of bits from the highest on. kPadding zero bytes follow the data.
class BitReader {
 public:
  explicit BitReader(const uint8_t* from) : at_(from) {}

  // Makes at least 56 bits available.
  void refill() {
    uint64_t next;
    std::memcpy(&next, at_, sizeof(next));
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    bits_ |= next >> number_;
#else
    bits_ |= __builtin_bswap64(next) >> number_;
#endif
    at_ += (63 - number_) >> 3;
    number_ |= 56;
  }
  int number() const { return number_; }
  // Return the next 1 to 32 bits, without and with consuming them.
  uint32_t peek(int number) const { return static_cast<uint32_t>(bits_ >> (64 - number)); }
  void skip(int number) {
    bits_ <<= number;
    number_ -= number;
  }
  uint32_t take(int number) {
    const uint32_t bits = peek(number);
    skip(number);
    return bits;
  }
  // Returns the first byte without consumed bits.
  const uint8_t* position() const { return at_ - (number_ >> 3); }

 private:
  const uint8_t* at_;
  uint64_t bits_ = 0;
  int number_ = 0;
};

// A value of `size` bits: the lower half of the range represents negative ones.
inline int extend(uint32_t bits, int size) {
  const int value = static_cast<int>(bits);
  return value < 1 << (size - 1) ? value - (1 << size) + 1 : value;
}

// A decoded symbol: its steps along the zigzag, and the value there.
struct Symbol {
  int16_t value;
  uint8_t step;  // kEndOfBlock, kBadCode, or zeros before the value and itself; 0 of DC values
  uint8_t bits;  // of code and value; 0: longer than kPeek
};

// As many symbols as fit into kPeek bits, without their values.
struct Jump {
  uint8_t steps;  // kEndOfBlock more if the last symbol ends the block; kBadCode for a long symbol
  uint8_t bits;
};

class HuffmanTable {
 public:
  // Makes the tables; returns false if the codes are impossible.
  bool make(const HuffmanSpec& spec, bool is_dc) {
    if (is_made_ && std::memcmp(&spec, &spec_, sizeof(spec)) == 0) return true;
    is_made_ = false;
    spec_ = spec;
    is_dc_ = is_dc;
    uint32_t code = 0;
    int number = 0;
    for (int length = 1; length <= kMaxCode; ++length) {
      offset_[length] = number - static_cast<int>(code);
      code += spec.counts[length - 1];
      number += spec.counts[length - 1];
      if (code > 1u << length) return false;
      limit_[length] = code << (kMaxCode - length);
      code <<= 1;
    }
    for (uint32_t bits = 0; bits < 1 << kPeek; ++bits) symbols_[bits] = short_symbol(bits);
    for (uint32_t bits = 0; bits < 1 << kPeek && !is_dc; ++bits) jumps_[bits] = make_jump(bits);
    is_made_ = true;
    return true;
  }

  // Consumes at most 27 bits, which must be in the reader.
  Symbol read(BitReader& reader) const {
    const Symbol symbol = symbols_[reader.peek(kPeek)];
    if (__builtin_expect(symbol.bits == 0, 0)) {
      BitReader copy = reader;  // the reader itself stays in registers
      const Symbol found = read_long(copy);
      reader = copy;
      return found;
    }
    reader.skip(symbol.bits);
    return symbol;
  }

  Jump jump(const BitReader& reader) const { return jumps_[reader.peek(kPeek)]; }

 private:
  // Length of the code at the head of kMaxCode bits, 17 if there is none.
  int code_length(uint32_t bits) const {
    int length = 1;
    while (length <= kMaxCode && bits >= limit_[length]) ++length;
    return length;
  }
  int code_symbol(uint32_t bits, int length) const {
    return spec_.symbols[offset_[length] + static_cast<int>(bits >> (kMaxCode - length))];
  }
  // Bits of the value after a symbol, and steps along the zigzag.
  int value_bits(int symbol) const { return is_dc_ ? symbol : symbol & 15; }
  int steps(int symbol) const {
    if (is_dc_) return symbol <= kMaxDcValue ? 0 : kBadCode;
    if ((symbol & 15) > kMaxAcValue) return kBadCode;
    if ((symbol & 15) == 0) return symbol == 0xF0 ? 16 : symbol == 0 ? kEndOfBlock : kBadCode;
    return (symbol >> 4) + 1;
  }

  Symbol short_symbol(uint32_t peeked) const {
    const uint32_t bits = peeked << (kMaxCode - kPeek);
    const int length = code_length(bits);
    if (length > kPeek) return {0, kBadCode, 0};
    const int symbol = code_symbol(bits, length);
    const int step = steps(symbol), size = step == kBadCode ? 0 : value_bits(symbol);
    if (length + size > kPeek) return {0, kBadCode, 0};
    const uint32_t value = peeked >> (kPeek - length - size) & ((1u << size) - 1);
    return {static_cast<int16_t>(size == 0 ? 0 : extend(value, size)), static_cast<uint8_t>(step),
            static_cast<uint8_t>(length + size)};
  }

  Jump make_jump(uint32_t peeked) const {
    int steps = 0, bits = 0;
    while (steps < kEndOfBlock) {
      const Symbol next = symbols_[peeked << bits & ((1 << kPeek) - 1)];
      // Bits that were shifted in are not part of the data.
      if (next.bits == 0 || next.bits + bits > kPeek || next.step == kBadCode) break;
      if (steps + next.step % kEndOfBlock >= kCoefficients) break;
      bits += next.bits;
      steps += next.step;
    }
    if (bits == 0) steps = kBadCode;
    return {static_cast<uint8_t>(steps), static_cast<uint8_t>(bits)};
  }

  Symbol read_long(BitReader& reader) const {
    const uint32_t bits = reader.peek(kMaxCode);
    const int length = code_length(bits);
    if (length > kMaxCode) return {0, kBadCode, 1};
    const int symbol = code_symbol(bits, length);
    const int step = steps(symbol);
    if (step == kBadCode) return {0, kBadCode, 1};
    reader.skip(length);
    const int size = value_bits(symbol);
    const int value = size == 0 ? 0 : extend(reader.take(size), size);
    return {static_cast<int16_t>(value), static_cast<uint8_t>(step), 1};
  }

  bool is_made_ = false, is_dc_ = false;
  HuffmanSpec spec_;
  uint32_t limit_[kMaxCode + 1];  // of each length, the first bits that are a longer code
  int offset_[kMaxCode + 1];      // of each length, from codes to places in the symbols
  Symbol symbols_[1 << kPeek];
  Jump jumps_[1 << kPeek];
};

// Skips the rest of a block after index k of the zigzag; returns false if it is damaged.
inline bool skip_rest(BitReader& from, const HuffmanTable& table, int k) {
  constexpr int kLast = kCoefficients - 1;
  BitReader reader = from;
  while (k < kLast) {
    reader.refill();
    // The bits suffice for four jumps.
    Jump jump = table.jump(reader);
    for (int i = 0; i < 3 && k + jump.steps < kLast; ++i) {
      reader.skip(jump.bits);
      k += jump.steps;
      jump = table.jump(reader);
    }
    const int end = k + jump.steps;
    const bool is_inside = end <= kLast || (end >= kEndOfBlock && end < kEndOfBlock + kLast);
    if (is_inside) {
      reader.skip(jump.bits);
      k = end;
    } else {
      // A long symbol, or the block ends within the jump.
      reader.refill();
      k += table.read(reader).step;
    }
  }
  from = reader;
  return k == kLast || k >= kEndOfBlock;
}

// Copies entropy-coded data without its stuffed zeros, up to a marker.
//
// Returns the position of the marker, or `size` if the data end without one.
inline size_t unstuff(const uint8_t* data, size_t at, size_t size, std::vector<uint8_t>& to,
                      size_t& length) {
  if (to.size() < size - at + kPadding) to.resize(size - at + kPadding);
  length = 0;
  while (at < size) {
    const void* found = std::memchr(data + at, 0xFF, size - at);
    const size_t next = found == nullptr ? size : static_cast<const uint8_t*>(found) - data;
    std::memcpy(to.data() + length, data + at, next - at);
    length += next - at;
    at = next;
    if (at + 1 >= size) {
      at = size;
      break;
    }
    if (data[at + 1] != 0) break;
    to[length++] = 0xFF;
    at += 2;
  }
  std::memset(to.data() + length, 0, kPadding);
  return at;
}

}  // namespace jpeg_crop
}  // namespace opus
