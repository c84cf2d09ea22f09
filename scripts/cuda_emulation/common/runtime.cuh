// Stands in for models/csrc/common/launch.cuh where CUDA sources are compiled for the CPU: the
// blocks of a grid run one after another, the threads of a block take turns, each until it waits
// for others. See scripts/emulate_cuda.py.
//
// A run ends with an error where a thread ends while others wait for it, where threads wait for
// each other in different places, and where shared memory is written past its end. Threads run in
// the order of OPUS_EMULATED_ORDER, so that what depends on their order shows as a difference.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static  // there is one block at a time
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#include "common/cuda_launch.h"
#include "common/defs.h"

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace opus {
namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 128 * 1024;
constexpr int64_t kMostShared = 98 * 1024;  // what the smallest of the reported GPUs has
constexpr int64_t kGuardBytes = 4096;
constexpr unsigned char kUnset = 0xff;      // NaN as floats

enum class State { kReady, kWaitsForWarp, kWaitsForBlock, kDone };

struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  dim3 index;
  State state = State::kReady;
  int exchanges = 0;  // with its warp
};

struct Block {
  std::vector<Thread> threads;
  std::vector<uint64_t> slots;  // of exchanges: two for each thread, in turn
  ucontext_t scheduler;
  int current = 0, count = 0;
  std::function<void()> kernel;
};

inline Block block;
alignas(16) inline unsigned char shared_bytes[kMostShared + kGuardBytes];

inline void enter() {
  block.kernel();
  block.threads[block.current].state = State::kDone;
  swapcontext(&block.threads[block.current].context, &block.scheduler);
}

inline void wait(State state) {
  Thread& own = block.threads[block.current];
  own.state = state;
  swapcontext(&own.context, &block.scheduler);
}

// Turn k of the threads; what is right in one order and in the other depends on none.
inline int thread_at(int k) {
  static const char* order = std::getenv("OPUS_EMULATED_ORDER");
  if (order == nullptr || std::strcmp(order, "ascending") == 0) return k;
  if (std::strcmp(order, "descending") == 0) return block.count - 1 - k;
  throw std::runtime_error("OPUS_EMULATED_ORDER must be ascending or descending");
}

// Lets the threads [first, last) go on if all of them wait for each other.
inline bool release(int first, int last, State state) {
  for (int i = first; i < last; ++i) {
    if (block.threads[i].state != state) return false;
  }
  for (int i = first; i < last; ++i) block.threads[i].state = State::kReady;
  return true;
}

inline void run_block() {
  for (int i = 0; i < block.count; ++i) {
    Thread& thread = block.threads[i];
    thread.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
    thread.state = State::kReady;
    thread.exchanges = 0;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    for (int k = 0; k < block.count; ++k) {
      block.current = thread_at(k);
      Thread& thread = block.threads[block.current];
      if (thread.state != State::kReady) continue;
      alive = true;
      threadIdx = thread.index;
      swapcontext(&block.scheduler, &thread.context);
    }
    for (int first = 0; first < block.count; first += kWarp) {
      const int last = std::min(first + kWarp, block.count);
      alive = release(first, last, State::kWaitsForWarp) || alive;
    }
    alive = release(0, block.count, State::kWaitsForBlock) || alive;
  }
  for (int i = 0; i < block.count; ++i) {
    if (block.threads[i].state != State::kDone) {
      throw std::runtime_error("thread " + std::to_string(i) + " waits for others in vain");
    }
  }
}

inline void check_guard(const char* what, int64_t used) {
  for (int64_t i = used; i < used + kGuardBytes; ++i) {
    if (shared_bytes[i] != kUnset) {
      throw std::runtime_error(std::string(what) + " writes past its shared memory");
    }
  }
}

// What lane `source` of the thread's warp gave.
template <typename T>
T exchange(T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Thread& own = block.threads[block.current];
  const int turn = own.exchanges++ % 2, first = block.current / kWarp * kWarp;
  std::memcpy(&block.slots[2 * block.current + turn], &value, sizeof(T));
  wait(State::kWaitsForWarp);
  T result;
  std::memcpy(&result, &block.slots[2 * (first + source) + turn], sizeof(T));
  return result;
}

inline int lane() { return block.current % kWarp; }

}  // namespace emulation

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = int64_t(1) << 20;

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulation::shared_bytes);
}

inline int64_t most_shared_bytes() { return emulation::kMostShared; }

inline dim3 blocks_for(int64_t count) {
  return dim3(static_cast<unsigned>(least_of(count, kMaxBlocks)));
}

template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* what, void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
                   int64_t shared_bytes, CudaStream, const Arguments&... arguments) {
  using namespace emulation;
  if (shared_bytes > kMostShared) throw std::runtime_error(std::string(what) + ": shared memory");
  block.count = static_cast<int>(threads.x * threads.y * threads.z);
  if (block.count == 0 || block.count > 1024 || blocks.x * blocks.y * blocks.z == 0) {
    throw std::runtime_error(std::string(what) + ": an invalid grid");
  }
  if (static_cast<int>(block.threads.size()) < block.count) block.threads.resize(block.count);
  block.slots.assign(2 * block.threads.size(), 0);
  block.kernel = [&] { kernel(arguments...); };
  blockDim = threads;
  gridDim = blocks;
  for (unsigned z = 0; z < blocks.z; ++z) {
    for (unsigned y = 0; y < blocks.y; ++y) {
      for (unsigned x = 0; x < blocks.x; ++x) {
        blockIdx = dim3(x, y, z);
        std::memset(emulation::shared_bytes, kUnset, shared_bytes + kGuardBytes);
        run_block();
        check_guard(what, shared_bytes);
      }
    }
  }
}

template <typename Body>
void launch_cuda(const Body& body, int64_t count, CudaStream) {
  for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace opus

#define OPUS_INSTANTIATE_LAUNCH(...) \
  template void opus::launch_cuda<__VA_ARGS__>(const __VA_ARGS__&, int64_t, opus::CudaStream)

inline void __syncthreads() { opus::emulation::wait(opus::emulation::State::kWaitsForBlock); }
inline void __syncwarp() { opus::emulation::wait(opus::emulation::State::kWaitsForWarp); }

template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  return opus::emulation::exchange(value, source);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return opus::emulation::exchange(value, opus::emulation::lane() ^ mask);
}
inline int __all_sync(unsigned mask, int predicate) {
  int all = predicate != 0;
  for (int step = 16; step > 0; step /= 2) all &= __shfl_xor_sync(mask, all, step);
  return all;
}

template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
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
