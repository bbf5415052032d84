// AVX2 and FMA: 8 lanes, 16 registers.
#define QUIRE_ISA avx2
#include "attention_kernels.inl"
#include "linear_kernels.inl"
#include "sampler_kernels.inl"
