/* The C ABI of libquire_kernels.so. ../native_library.py declares the same structures for ctypes.
 *
 * Functions that can fail take a buffer for a message that starts with the argument's name, and return 0 on
 * success, 1 with the message written. Nothing has been written to any tensor then. Strides count elements.
 */
#ifndef QUIRE_KERNELS_H
#define QUIRE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define QUIRE_ABI_VERSION 4
#define QUIRE_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum quire_dtype { QUIRE_FLOAT32 = 0, QUIRE_BFLOAT16 = 1, QUIRE_INT8 = 2 };

/* One layer's view of the KV pool. Keys and values are [num_blocks, num_kv_heads, block_size, head_dim], the inner
 * two dimensions contiguous. An int8 cache also has scales [num_blocks, num_kv_heads, block_size], the inner
 * dimension contiguous: an element is its integer times the scale of its token and head. */
typedef struct quire_kv_cache {
    void* key;
    void* value;
    float* key_scales; /* null unless dtype is QUIRE_INT8 */
    float* value_scales;
    int64_t key_block_stride, key_head_stride;
    int64_t value_block_stride, value_head_stride;
    int64_t key_scale_block_stride, key_scale_head_stride;
    int64_t value_scale_block_stride, value_scale_head_stride;
    int64_t num_blocks;
    int32_t num_kv_heads, head_dim, block_size;
    int32_t dtype; /* quire_dtype */
} quire_kv_cache;

typedef struct quire_attention_args {
    quire_kv_cache cache;
    const void* query;           /* [num_tokens, num_heads, head_dim], float32 or bfloat16 */
    void* output;                /* the same shape and type, contiguous */
    const int32_t* query_start;  /* [num_seqs + 1] */
    const int32_t* context_lens; /* [num_seqs] */
    const int32_t* block_tables; /* [num_seqs, max_blocks] */
    int64_t query_token_stride, query_head_stride;
    int64_t block_table_stride;
    int64_t sliding_window; /* keys a query sees, itself included; 0: all */
    int32_t num_tokens, num_seqs, max_blocks;
    int32_t num_heads;
    int32_t query_dtype;
    float scale;
} quire_attention_args;

typedef struct quire_store_args {
    quire_kv_cache cache;
    const void* key;             /* [num_tokens, num_kv_heads, head_dim], float32 or bfloat16 */
    const void* value;           /* the same */
    const int64_t* slot_mapping; /* [num_tokens] */
    int64_t key_token_stride, key_head_stride;
    int64_t value_token_stride, value_head_stride;
    int32_t num_tokens;
    int32_t dtype; /* of key and value */
} quire_store_args;

typedef struct quire_rotate_args {
    quire_kv_cache cache;
    float* qkv;                  /* [num_tokens, (num_heads + 2 num_kv_heads) * head_dim]: queries, keys, values */
    const float* cos;            /* [num_tokens, rotary_dim / 2], contiguous */
    const float* sin;            /* the same */
    const float* q_norm;         /* [head_dim], or null: no norm */
    const float* k_norm;         /* the same */
    const int64_t* slot_mapping; /* [num_tokens] */
    int64_t token_stride;        /* of qkv */
    int32_t num_tokens, num_heads, rotary_dim;
    float eps; /* of both norms */
} quire_rotate_args;

QUIRE_EXPORT int32_t quire_abi_version(void);

/* Instruction sets, best first, comma between. */
QUIRE_EXPORT const char* quire_available_isas(void);
QUIRE_EXPORT const char* quire_current_isa(void);
QUIRE_EXPORT int32_t quire_set_isa(const char* name);

/* Threads, the caller's included; started by the first call that has work for them. */
QUIRE_EXPORT void quire_set_num_threads(int32_t num_threads);
QUIRE_EXPORT int32_t quire_get_num_threads(void);

QUIRE_EXPORT int32_t quire_paged_attention(const quire_attention_args* args, char* error, size_t error_size);

/* The layers of a step, one after the other on one plan (paged_ops.hpp). They differ in cache pointers, query, output
 * and sliding window only; for its own test. */
QUIRE_EXPORT int32_t quire_paged_attention_layers(const quire_attention_args* layers, int32_t num_layers, char* error,
                                                  size_t error_size);
QUIRE_EXPORT int32_t quire_store_kv(const quire_store_args* args, char* error, size_t error_size);

/* Norms (where there are weights) and rotates queries and keys where they lie, and stores keys and values. */
QUIRE_EXPORT int32_t quire_rotate_and_store(const quire_rotate_args* args, char* error, size_t error_size);

/* Copies block_bytes at pool + sources[i] * block_stride_bytes to the destination's place; ids are not checked. */
QUIRE_EXPORT void quire_copy_blocks(void* pool, int64_t block_stride_bytes, int64_t block_bytes,
                                    const int64_t* sources, const int64_t* destinations, int64_t count);

/* The exponential of the softmax, for its own test. */
QUIRE_EXPORT void quire_exp(const float* in, float* out, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
