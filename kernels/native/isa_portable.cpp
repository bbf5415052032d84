// Any machine that the compiler knows: 4 lanes, no fused multiply-add.
#define QUIRE_ISA portable
#include "attention_kernels.inl"
#include "linear_kernels.inl"
#include "sampler_kernels.inl"
