// AVX-512 (F, BW, DQ, VL): 16 lanes, 32 registers.
#define QUIRE_ISA avx512
#include "linear_kernels.inl"
#include "paged_kernels.inl"
#include "sampler_kernels.inl"
#include "row_kernels.inl"
