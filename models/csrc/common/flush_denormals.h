// Floating-point numbers below the normal range as zeros, within a scope.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace opus {

// While it exists, the calling thread reads and writes denormal numbers as zeros. Processors need
// up to 150 cycles for an operation on a denormal number. Attention weights and their gradients
// pass through this range, far below the last bit of any sum that they are added to.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : state_(_mm_getcsr()) {
    constexpr unsigned int kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
    _mm_setcsr(state_ | kFlushToZero | kDenormalsAreZero);
  }
  ~FlushDenormals() { _mm_setcsr(state_); }

 private:
  unsigned int state_;
#elif defined(__aarch64__)
  FlushDenormals() {
    constexpr uint64_t kFlushToZero = 1 << 24;
    asm volatile("mrs %0, fpcr" : "=r"(state_));
    asm volatile("msr fpcr, %0" ::"r"(state_ | kFlushToZero));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(state_)); }

 private:
  uint64_t state_;
#else
  FlushDenormals() {}
  ~FlushDenormals() {}
#endif

 public:
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace opus
