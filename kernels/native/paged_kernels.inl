// One instruction set's table of kernels over the paged cache.
#include "attention_kernels.inl"
#include "paged_kernels.hpp"
#include "store_kernels.inl"

namespace quire::QUIRE_ISA {

extern const PagedKernels kPagedKernels;
const PagedKernels kPagedKernels = {
    {load_queries<float>, load_queries<bfloat16>},
    {attend<float>, attend<bfloat16>, attend<int8_t>},
    fold,
    {write<float>, write<bfloat16>},
    {{store_tokens<float, float>, store_tokens<float, bfloat16>, store_tokens<float, int8_t>},
     {store_tokens<bfloat16, float>, store_tokens<bfloat16, bfloat16>, store_tokens<bfloat16, int8_t>}},
    {rotate_and_store_tokens<float>, rotate_and_store_tokens<bfloat16>, rotate_and_store_tokens<int8_t>},
    exp_array,
};

}  // namespace quire::QUIRE_ISA
