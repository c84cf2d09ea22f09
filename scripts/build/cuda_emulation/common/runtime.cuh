// Replaces models/csrc/common/runtime.cuh when CUDA sources are compiled for the CPU. The blocks of
// a grid run one after another. The warps of a block run in turn, each until it waits for the block;
// the threads of a warp run in turn, each until it waits for other threads. See
// scripts/emulate_cuda.py.
//
// The run ends with an error if a thread ends while others wait for it, if threads wait for each
// other at different lines of the source, if a grid exceeds the limits of GPUs, or if shared memory
// is written past its end. Shared memory holds NaNs at the start of every block. The variable
// OPUS_EMULATED_ORDER sets the order of threads: results that depend on it differ between runs.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

// Only one block runs at a time.
#if defined(__SANITIZE_ADDRESS__)  // checks the bounds of arrays, but not of sections
#define __shared__ static
#else
#define __shared__ static __attribute__((section("opus_shared")))
extern "C" __attribute__((visibility("hidden"))) unsigned char __start_opus_shared[];
extern "C" __attribute__((visibility("hidden"))) unsigned char __stop_opus_shared[];
#endif

#include "common/cuda_launch.h"
#include "common/defs.h"

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace opus {
namespace emulation {

using Where = std::source_location;

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 128 * 1024;
constexpr int64_t kMostShared = 98 * 1024;  // of the smallest reported GPU
constexpr int64_t kMostParameters = 4096;   // bytes
constexpr unsigned kMostBlocks = 65535;     // along y and z
constexpr int64_t kGuardBytes = 4096;
constexpr unsigned char kUnset = 0xff;      // NaN as floats

enum class State { kReady, kWaitsForWarp, kWaitsForBlock, kDone };

// Execution state of a suspended thread or of the scheduler loop.
struct Place {
  ucontext_t context;
  jmp_buf jump;
};

inline void go(Place& from, Place& to) {
#if defined(__SANITIZE_ADDRESS__)  // supports contexts
  swapcontext(&from.context, &to.context);
#else  // ten times as fast: contexts query the signal mask from the kernel
  if (_setjmp(from.jump) == 0) _longjmp(to.jump, 1);
#endif
}

struct Thread {
  Place place;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  dim3 index;
  State state = State::kDone;
  Where where;        // at which it waits
  int exchanges = 0;  // with its warp
};

struct Block {
  std::vector<Thread> threads;  // reused for later blocks
  std::vector<uint64_t> slots;  // of exchanges: two per thread, used alternately
  Place scheduler;
  int current = 0, count = 0;
  std::function<void()> kernel;
};

inline Block block;
alignas(16) inline unsigned char shared_bytes[kMostShared + kGuardBytes];

inline void pause(State state) {
  Thread& own = block.threads[block.current];
  own.state = state;
  go(own.place, block.scheduler);
}

inline void wait(State state, const Where& where) {
  block.threads[block.current].where = where;
  pause(state);
}

// Endless loop of a thread: after an initial turn, it runs the kernel once per block.
inline void live() {
  Place& own = block.threads[block.current].place;
  if (_setjmp(own.jump) == 0) swapcontext(&own.context, &block.scheduler.context);
  while (true) {
    block.kernel();
    pause(State::kDone);
  }
}

inline void create(Thread& thread) {
  ucontext_t& context = thread.place.context;
  getcontext(&context);
  context.uc_stack.ss_sp = thread.stack.data();
  context.uc_stack.ss_size = thread.stack.size();
  context.uc_link = nullptr;
  makecontext(&context, live, 0);
  swapcontext(&block.scheduler.context, &context);
}

// Threads for a block of this size. After an error they are suspended inside a kernel.
inline void prepare(int count) {
  const auto is_done = [](const Thread& thread) { return thread.state == State::kDone; };
  if (!std::all_of(block.threads.begin(), block.threads.end(), is_done)) block.threads.clear();
  const auto before = static_cast<int>(block.threads.size());
  if (before < count) block.threads = std::vector<Thread>(count);
  for (block.current = 0; before < count && block.current < count; ++block.current) {
    create(block.threads[block.current]);
  }
  block.count = count;
  block.slots.assign(2 * num_blocks(count, kWarp) * kWarp, 0);
}

// Index of the thread or block, of `count`, in turn k. A result that is correct in both orders does
// not depend on the order.
inline int64_t at_turn(int64_t k, int64_t count) {
  static const char* order = std::getenv("OPUS_EMULATED_ORDER");
  if (order == nullptr || std::strcmp(order, "ascending") == 0) return k;
  if (std::strcmp(order, "descending") == 0) return count - 1 - k;
  throw std::runtime_error("OPUS_EMULATED_ORDER must be ascending or descending");
}

inline std::string text(const Where& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

// Resumes the threads [first, last) if all of them wait for each other.
inline bool release(int first, int last, State state) {
  for (int i = first; i < last; ++i) {
    if (block.threads[i].state != state) return false;
  }
  const Where& where = block.threads[first].where;
  for (int i = first; i < last; ++i) {
    const Where& other = block.threads[i].where;
    if (other.line() != where.line() || std::strcmp(other.file_name(), where.file_name()) != 0) {
      throw std::runtime_error("threads wait for each other at " + text(where) + " and at " +
                               text(other));
    }
    block.threads[i].state = State::kReady;
  }
  return true;
}

// A warp runs up to its next barrier before the others, so that missing barriers cause errors.
inline void run_warp(int warp) {
  const int first = warp * kWarp, last = std::min(first + kWarp, block.count);
  do {
    for (int turn = 0; turn < last - first; ++turn) {
      block.current = first + static_cast<int>(at_turn(turn, last - first));
      Thread& thread = block.threads[block.current];
      if (thread.state != State::kReady) continue;
      threadIdx = thread.index;
      go(block.scheduler, thread.place);
    }
  } while (release(first, last, State::kWaitsForWarp));
}

inline void run_block() {
  for (int i = 0; i < block.count; ++i) {
    Thread& thread = block.threads[i];
    thread.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
    thread.state = State::kReady;
    thread.exchanges = 0;
  }
  const auto warps = static_cast<int>(num_blocks(block.count, kWarp));
  do {
    for (int turn = 0; turn < warps; ++turn) run_warp(static_cast<int>(at_turn(turn, warps)));
  } while (release(0, block.count, State::kWaitsForBlock));
  for (int i = 0; i < block.count; ++i) {
    const Thread& thread = block.threads[i];
    if (thread.state != State::kDone) {
      throw std::runtime_error("thread " + std::to_string(i) + " waits for others forever at " +
                               text(thread.where));
    }
  }
}

inline void unset_shared(int64_t used) {
  std::memset(shared_bytes, kUnset, used + kGuardBytes);
#if !defined(__SANITIZE_ADDRESS__)
  std::memset(__start_opus_shared, kUnset, __stop_opus_shared - __start_opus_shared);
#endif
}

inline bool wrote_past_shared(int64_t used) {
  const auto is_set = [](unsigned char byte) { return byte != kUnset; };
  return std::any_of(shared_bytes + used, shared_bytes + used + kGuardBytes, is_set);
}

inline bool fits(dim3 blocks, dim3 threads, int64_t shared, int64_t parameters) {
  const auto least = std::min({blocks.x, blocks.y, blocks.z, threads.x, threads.y, threads.z});
  const auto in_block = static_cast<uint64_t>(threads.x) * threads.y * threads.z;
  return least > 0 && blocks.x <= INT32_MAX && std::max(blocks.y, blocks.z) <= kMostBlocks &&
         in_block <= 1024 && shared <= kMostShared && parameters <= kMostParameters;
}

// Value passed by lane `source` of the thread's warp.
template <typename T>
T exchange(T value, int source, const Where& where) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Thread& own = block.threads[block.current];
  const int turn = own.exchanges++ % 2, first = block.current / kWarp * kWarp;
  std::memcpy(&block.slots[2 * block.current + turn], &value, sizeof(T));
  wait(State::kWaitsForWarp, where);
  T result;
  std::memcpy(&result, &block.slots[2 * (first + source) + turn], sizeof(T));
  return result;
}

inline int lane() { return block.current % kWarp; }

}  // namespace emulation

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulation::shared_bytes);
}

inline int64_t most_shared_bytes() { return emulation::kMostShared; }

template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* what, void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
                   int64_t shared_bytes, CudaStream, const Arguments&... arguments) {
  using namespace emulation;
  if (!fits(blocks, threads, shared_bytes, (static_cast<int64_t>(sizeof(Parameters)) + ...))) {
    throw std::runtime_error(std::string(what) + ": exceeds the limits of GPUs");
  }
  prepare(static_cast<int>(threads.x * threads.y * threads.z));
  block.kernel = [&] { kernel(arguments...); };
  blockDim = threads;
  gridDim = blocks;
  const int64_t in_plane = static_cast<int64_t>(blocks.x) * blocks.y, count = in_plane * blocks.z;
  for (int64_t turn = 0; turn < count; ++turn) {
    const int64_t at = at_turn(turn, count);
    blockIdx = dim3(static_cast<unsigned>(at % blocks.x),
                    static_cast<unsigned>(at / blocks.x % blocks.y),
                    static_cast<unsigned>(at / in_plane));
    unset_shared(shared_bytes);
    run_block();
    if (wrote_past_shared(shared_bytes)) {
      throw std::runtime_error(std::string(what) + " writes past its shared memory");
    }
  }
}

}  // namespace opus

inline void __syncthreads(opus::emulation::Where where = opus::emulation::Where::current()) {
  opus::emulation::wait(opus::emulation::State::kWaitsForBlock, where);
}
inline void __syncwarp(opus::emulation::Where where = opus::emulation::Where::current()) {
  opus::emulation::wait(opus::emulation::State::kWaitsForWarp, where);
}

template <typename T>
T __shfl_sync(unsigned, T value, int source,
              opus::emulation::Where where = opus::emulation::Where::current()) {
  return opus::emulation::exchange(value, source, where);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask,
                  opus::emulation::Where where = opus::emulation::Where::current()) {
  return opus::emulation::exchange(value, opus::emulation::lane() ^ mask, where);
}
inline int __all_sync(unsigned mask, int predicate,
                      opus::emulation::Where where = opus::emulation::Where::current()) {
  int all = predicate != 0;
  for (int step = 16; step > 0; step /= 2) all &= __shfl_xor_sync(mask, all, step, where);
  return all;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}
inline float4 atomicAdd(float4* address, float4 value) {
  const float4 before = *address;
  *address = {before.x + value.x, before.y + value.y, before.z + value.z, before.w + value.w};
  return before;
}
template <typename T>
T atomicMax(T* address, T value) {
  const T before = *address;
  *address = std::max(before, value);
  return before;
}
template <typename T>
T atomicMin(T* address, T value) {
  const T before = *address;
  *address = std::min(before, value);
  return before;
}
template <typename T>
T atomicOr(T* address, T value) {
  const T before = *address;
  *address |= value;
  return before;
}
