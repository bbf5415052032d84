// AVX-512 with bfloat16 dot products, and with VNNI, which no processor with the former lacks. Zen 4, Sapphire Rapids.
#define QUIRE_ISA avx512_bf16
#include "linear_kernels.inl"
