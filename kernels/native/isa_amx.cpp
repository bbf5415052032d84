// AMX: products on tiles, beside all of AVX-512 that its processors have. Sapphire Rapids and later.
#include "amx_tiles.hpp"

#define QUIRE_ISA avx512_amx
#include "linear_kernels.inl"

namespace quire::QUIRE_ISA {

extern bool (*const kIsAvailable)();
bool (*const kIsAvailable)() = amx::is_available;

}  // namespace quire::QUIRE_ISA
