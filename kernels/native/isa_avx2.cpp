// AVX2 and FMA: 8 lanes, 16 registers.
#define QUIRE_ISA avx2
#include "linear_kernels.inl"
#include "paged_kernels.inl"
#include "sampler_kernels.inl"
#include "row_kernels.inl"
