// Our own threads: OpenMP's would spin against the threads of torch's and of the other processes.
#pragma once

#include <cstdint>

namespace quire {

// Calls task(context, i, worker) once for every i in [0, count), on the caller's thread (worker 0) and up to
// num_threads - 1 others, and returns when all are done. Which thread gets which i is chance: tasks must not
// depend on it. One call runs at a time; others wait. Tasks must not throw or call this again.
void parallel_for(int64_t count, void (*task)(void* context, int64_t i, int worker), void* context);

template <class F>
void parallel_for(int64_t count, const F& body) {
    parallel_for(
        count, [](void* context, int64_t i, int worker) { (*static_cast<const F*>(context))(i, worker); },
        const_cast<F*>(&body));
}

// The caller's thread included.
int num_threads();

}  // namespace quire
