// Runs independent tasks on torch's threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "common/defs.h"
#include "common/flush_denormals.h"

namespace opus {

// Calls run(task) once for each task in [0, num_tasks), on all of torch's threads. Threads take
// tasks one by one, which balances the load. A task must write only memory that no other task
// accesses; results then do not depend on the number of threads. Denormal numbers are zeros in
// tasks, on every path.
template <typename Run>
void parallel_tasks(int64_t num_tasks, const Run& run) {
  const int64_t num_workers = std::min<int64_t>(at::get_num_threads(), num_tasks);
  if (num_workers <= 1 || at::in_parallel_region()) {
    const FlushDenormals flush;
    for (int64_t task = 0; task < num_tasks; ++task) run(task);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, num_workers, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
        run(task);
      }
    }
  });
}

// The same, but on the calling thread unless `worthwhile`: waking a thread takes about 10 us.
template <typename Run>
void parallel_tasks_if(bool worthwhile, int64_t num_tasks, const Run& run) {
  if (worthwhile) return parallel_tasks(num_tasks, run);
  const FlushDenormals flush;
  for (int64_t task = 0; task < num_tasks; ++task) run(task);
}

}  // namespace opus
