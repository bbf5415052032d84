// Tells a waiting thread that a GPU has come to a point of its stream.
#include <cstdint>
#include <unistd.h>

#include "quire_kernels.h"

// A host function for cuLaunchHostFunc: on a thread of the driver's, which must not call CUDA and should not wait for
// Python's lock. The argument is the descriptor itself, a non-blocking eventfd.
extern "C" QUIRE_EXPORT void quire_signal_eventfd(void* descriptor) {
    const uint64_t one = 1;
    // It fails only once 2^64 - 2 signals have not been read; the descriptor is readable then.
    [[maybe_unused]] const ssize_t written = write(static_cast<int>(reinterpret_cast<intptr_t>(descriptor)), &one, 8);
}
