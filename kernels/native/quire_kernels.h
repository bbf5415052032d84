/* The C ABI of libquire_kernels.so. ../native_library.py declares the same structures for ctypes.
 *
 * Functions that can fail take a buffer for a message that starts with the argument's name, and return 0 on
 * success, 1 with the message written. Nothing has been written to any tensor then. Strides count elements.
 */
#ifndef QUIRE_KERNELS_H
#define QUIRE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define QUIRE_ABI_VERSION 1
#define QUIRE_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum quire_dtype { QUIRE_FLOAT32 = 0, QUIRE_BFLOAT16 = 1 };

typedef struct quire_attention_args {
    const void* query;           /* [num_tokens, num_heads, head_dim] */
    void* output;                /* the same shape, contiguous */
    const void* key_cache;       /* [num_blocks, num_kv_heads, block_size, head_dim], inner two contiguous */
    const void* value_cache;     /* the same */
    const int32_t* query_start;  /* [num_seqs + 1] */
    const int32_t* context_lens; /* [num_seqs] */
    const int32_t* block_tables; /* [num_seqs, max_blocks] */
    int64_t query_token_stride, query_head_stride;
    int64_t key_block_stride, key_head_stride;
    int64_t value_block_stride, value_head_stride;
    int64_t block_table_stride;
    int64_t num_blocks;
    int64_t sliding_window; /* keys a query sees, itself included; 0: all */
    int32_t num_tokens, num_seqs, max_blocks;
    int32_t num_heads, num_kv_heads, head_dim, block_size;
    int32_t dtype; /* quire_dtype of query, output and both caches */
    float scale;
} quire_attention_args;

typedef struct quire_store_args {
    const void* key;   /* [num_tokens, num_kv_heads, head_dim] */
    const void* value; /* the same */
    void* key_cache;
    void* value_cache;
    const int64_t* slot_mapping; /* [num_tokens] */
    int64_t key_token_stride, key_head_stride;
    int64_t value_token_stride, value_head_stride;
    int64_t key_block_stride, key_head_cache_stride;
    int64_t value_block_stride, value_head_cache_stride;
    int64_t num_blocks;
    int32_t num_tokens, num_kv_heads, head_dim, block_size;
    int32_t dtype;
} quire_store_args;

QUIRE_EXPORT int32_t quire_abi_version(void);

/* Instruction sets, best first, comma between. */
QUIRE_EXPORT const char* quire_available_isas(void);
QUIRE_EXPORT const char* quire_current_isa(void);
QUIRE_EXPORT int32_t quire_set_isa(const char* name);

/* Threads, the caller's included; started by the first call that has work for them. */
QUIRE_EXPORT void quire_set_num_threads(int32_t num_threads);
QUIRE_EXPORT int32_t quire_get_num_threads(void);

QUIRE_EXPORT int32_t quire_paged_attention(const quire_attention_args* args, char* error, size_t error_size);
QUIRE_EXPORT int32_t quire_store_kv(const quire_store_args* args, char* error, size_t error_size);

/* Copies block_bytes at pool + sources[i] * block_stride_bytes to the destination's place; ids are not checked. */
QUIRE_EXPORT void quire_copy_blocks(void* pool, int64_t block_stride_bytes, int64_t block_bytes,
                                    const int64_t* sources, const int64_t* destinations, int64_t count);

/* The exponential of the softmax, for its own test. */
QUIRE_EXPORT void quire_exp(const float* in, float* out, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
