// Sampling, for callers within the library.
#pragma once

#include "error.hpp"
#include "quire_sampling.h"

namespace quire {

// 0 if sample() may be called with these arguments, otherwise 1 with the message written.
int32_t check_sampling(const quire_sampling_args& args, const ErrorBuffer& error);

// Chooses a token for every row. A row's result depends on that row alone.
void sample(const quire_sampling_args& args);

}  // namespace quire
