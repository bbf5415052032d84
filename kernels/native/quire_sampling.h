/* Sampling, part of the C ABI of libquire_kernels.so (conventions: quire_kernels.h). ../native_sampling.py declares
 * the same structures. What the fields mean to a token's choice is told in ../sampling.py.
 */
#ifndef QUIRE_SAMPLING_H
#define QUIRE_SAMPLING_H

#include "quire_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How one row is sampled: one cache line. */
typedef struct quire_sampling_row {
    uint64_t seed;
    float temperature; /* 0: the most likely token */
    float top_p;       /* 1: all */
    float min_p;       /* 0: all */
    float repetition_penalty, frequency_penalty, presence_penalty;
    int32_t top_k;        /* 0: all */
    int32_t num_logprobs; /* -1: none, not even the sampled token's */
    uint32_t sequence_index;
    int32_t min_tokens;        /* banned tokens are banned in an output shorter than this */
    int32_t num_prompt_tokens; /* of the history */
    int32_t num_tokens;        /* of the history in all; less num_prompt_tokens: the new token's position */
    int32_t token_row;         /* the history's row of token_ids; looked at for penalties only */
    int32_t mask_row;          /* row of allowed_masks; -1: every token is allowed */
} quire_sampling_row;

typedef struct quire_sampling_args {
    float* logits; /* [num_rows, vocab_size]; overwritten */
    int64_t logits_stride;
    const quire_sampling_row* rows; /* [num_rows] */
    const int32_t* token_ids;       /* [num_token_rows, token_stride]; prompts and outputs */
    int64_t token_stride;
    const uint32_t* allowed_masks; /* [num_mask_rows, mask_stride]; bit t % 32 of word t / 32: token t is allowed */
    int64_t mask_stride;
    const int32_t* bias_starts; /* [num_rows + 1]: row i has entries bias_starts[i] to bias_starts[i + 1]; or null */
    const int32_t* bias_ids;
    const float* bias_values;
    const int32_t* banned_starts; /* the same for tokens banned below min_tokens; or null */
    const int32_t* banned_ids;
    int32_t* sampled;     /* [num_rows] */
    uint8_t* impossible;  /* [num_rows]: 1 where every logit was -inf or nan; the token is then 0 */
    float* logprobs;      /* [num_rows]: the sampled token's, where num_logprobs >= 0; may be null if nowhere */
    int32_t* top_ids;     /* [num_rows, top_stride]: the num_logprobs most likely tokens, likeliest first */
    float* top_logprobs;  /* the same shape */
    int64_t top_stride;
    int32_t num_rows, vocab_size, num_token_rows, num_mask_rows;
} quire_sampling_args;

QUIRE_EXPORT int32_t quire_sample(const quire_sampling_args* args, char* error, size_t error_size);

#ifdef __cplusplus
}
#endif
#endif
