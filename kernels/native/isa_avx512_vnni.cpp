// AVX-512 with VNNI: dot products of bytes. What has none is the plain AVX-512 kernel's.
#define QUIRE_ISA avx512_vnni
#include "linear_kernels.inl"
