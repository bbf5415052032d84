// Any machine that the compiler knows: 4 lanes, no fused multiply-add.
#define QUIRE_ISA portable
#include "linear_kernels.inl"
#include "paged_kernels.inl"
#include "sampler_kernels.inl"
#include "row_kernels.inl"
