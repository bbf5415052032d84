/* The C ABI of a whole step: the layers of a decoder, the head, and sampling, in one call. Rules: quire_kernels.h. */
#ifndef QUIRE_STEP_H
#define QUIRE_STEP_H

#include "quire_linear.h"
#include "quire_sampling.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Matrices and norms of one layer. Vectors are float32. */
typedef struct quire_layer {
    quire_packed_matrix qkv;     /* [(heads + 2 kv_heads) * head_dim, hidden] */
    quire_packed_matrix output;  /* [hidden, heads * head_dim] */
    quire_packed_matrix gate_up; /* interleaved as QUIRE_EPILOGUE_SILU_MUL wants it */
    quire_packed_matrix down;    /* [hidden, intermediate] */
    const float* input_norm;     /* [hidden] */
    const float* attention_norm; /* [hidden], between attention and feed-forward */
    const float* q_norm;         /* [head_dim], or null for both */
    const float* k_norm;
    quire_kv_cache cache;        /* of one shape in all layers */
    int64_t sliding_window;      /* 0: none */
} quire_layer;

typedef struct quire_decoder {
    const quire_layer* layers;
    quire_packed_matrix head;    /* [vocab, hidden] */
    const void* embedding;       /* [vocab, hidden] row by row, or null: the head's values, which must be unquantised */
    const float* norm;           /* [hidden], the last one */
    int32_t embedding_dtype;     /* quire_dtype */
    int32_t num_layers, hidden, num_heads, num_kv_heads, head_dim, rotary_dim;
    float rms_norm_eps;
} quire_decoder;

/* The tokens of a step; see AttentionMetadata for the columns. */
typedef struct quire_batch {
    const int32_t* token_ids; /* [num_tokens] */
    const float* cos;         /* [num_tokens, rotary_dim / 2] */
    const float* sin;
    const int64_t* slot_mapping;
    const int32_t* query_start;
    const int32_t* context_lens;
    const int32_t* block_tables;
    const int32_t* logit_rows; /* [num_logit_rows]: tokens whose logits are wanted */
    float* logits;             /* [num_logit_rows, vocab], written; null: nobody wants them but the sampling */
    const int32_t* state_rows; /* [num_state_rows]: tokens whose final states, after the last norm, are wanted */
    float* states;             /* [num_state_rows, hidden], written */
    uint64_t* layers_computed; /* counts up by one when a layer is done, for whoever watches; or null */
    int64_t block_table_stride;
    int32_t num_tokens, num_seqs, max_blocks, num_logit_rows, num_state_rows;
} quire_batch;

/* Computes the tokens, writes their keys and values into the cache, and, unless `sampling` is null, chooses a token for
 * each logit row: sampling->num_rows is num_logit_rows, its logits are the step's own. */
QUIRE_EXPORT int32_t quire_step(const quire_decoder* decoder, const quire_batch* batch,
                                const quire_sampling_args* sampling, char* error, size_t error_size);

#ifdef __cplusplus
}
#endif
#endif
