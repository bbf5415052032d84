// A whole forward pass: Llama, Mistral, Qwen2, Qwen3. Activations are float32 throughout; a product's input is narrowed
// where its format wants that, row by row.
#include "quire_step.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "error.hpp"
#include "linear.hpp"
#include "paged_ops.hpp"
#include "sampler.hpp"

namespace quire {
namespace {

// Rows of the feed-forward block that are computed at a time: bounds its memory, which is the widest of all.
constexpr int64_t kFeedForwardRows = 512;

// Memory that grows and stays.
class Arena {
public:
    // Everything taken before is void.
    void reserve(int64_t bytes) {
        used_ = 0;
        if (bytes <= capacity_) return;
        std::free(memory_);
        capacity_ = 0;
        memory_ = static_cast<char*>(std::aligned_alloc(64, round_up(bytes)));
        if (!memory_) throw std::bad_alloc();
        capacity_ = bytes;
    }

    char* take(int64_t bytes) {
        char* const start = memory_ + used_;
        used_ += round_up(bytes);
        return start;
    }

    static int64_t round_up(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

private:
    char* memory_ = nullptr;
    int64_t capacity_ = 0, used_ = 0;
};

// Rows of floats, an odd number of cache lines apart (see prepared_stride).
struct Rows {
    float* data;
    int64_t stride;

    float* operator[](int64_t row) const { return data + row * stride; }

    static int64_t stride_of(int64_t columns) { return (ceil_div(columns, 16) | 1) * 16; }
    static int64_t bytes(int64_t rows, int64_t columns) { return rows * stride_of(columns) * 4; }
    static Rows in(Arena& arena, int64_t rows, int64_t columns) {
        return {reinterpret_cast<float*>(arena.take(bytes(rows, columns))), stride_of(columns)};
    }
};

// Plans keep their memory from step to step.
AttentionPlan& thread_plan() {
    static thread_local AttentionPlan plan;
    return plan;
}

// A token's row of the embedding, or of the packed head that is the same matrix.
void read_embedding(const quire_decoder& decoder, int32_t token, float* to) {
    const int64_t hidden = decoder.hidden;
    if (!decoder.embedding) {
        read_packed_row(decoder.head, token, to);
    } else if (decoder.embedding_dtype == QUIRE_FLOAT32) {
        std::memcpy(to, static_cast<const float*>(decoder.embedding) + token * hidden, hidden * sizeof(float));
    } else {
        const uint16_t* const from = static_cast<const uint16_t*>(decoder.embedding) + token * hidden;
        for (int64_t i = 0; i < hidden; ++i) to[i] = widen(from[i]);
    }
}

// Rows of queries, keys and values.
int64_t qkv_size(const quire_decoder& decoder) {
    return int64_t{decoder.num_heads + 2 * decoder.num_kv_heads} * decoder.head_dim;
}

// What all layers have in common; their windows differ, so the widest is taken: all.
quire_attention_args attention_args(const quire_decoder& decoder, const quire_batch& batch) {
    quire_attention_args args{};
    args.cache = decoder.layers[0].cache;
    args.query_start = batch.query_start;
    args.context_lens = batch.context_lens;
    args.block_tables = batch.block_tables;
    args.query_token_stride = Rows::stride_of(qkv_size(decoder));
    args.query_head_stride = decoder.head_dim;
    args.block_table_stride = batch.block_table_stride;
    args.num_tokens = batch.num_tokens;
    args.num_seqs = batch.num_seqs;
    args.max_blocks = batch.max_blocks;
    args.num_heads = decoder.num_heads;
    args.query_dtype = QUIRE_FLOAT32;
    args.scale = 1.0f / std::sqrt(static_cast<float>(decoder.head_dim));
    return args;
}

// Rows that name tokens of the batch.
int32_t check_rows(const char* name, const int32_t* rows, int32_t count, int32_t num_tokens, const ErrorBuffer& error) {
    for (int32_t i = 0; i < count; ++i) {
        if (rows[i] < 0 || rows[i] >= num_tokens) {
            return error.fail("%s[%d] is %d, outside [0, %d)", name, i, rows[i], num_tokens);
        }
    }
    return 0;
}

int32_t check(const quire_decoder& decoder, const quire_batch& batch, const quire_sampling_args* sampling,
              const ErrorBuffer& error) {
    const int64_t vocab = decoder.head.outputs;
    for (int32_t i = 0; i < batch.num_tokens; ++i) {
        if (batch.token_ids[i] < 0 || batch.token_ids[i] >= vocab) {
            return error.fail("token_ids[%d] is %d, outside [0, %lld)", i, batch.token_ids[i],
                              static_cast<long long>(vocab));
        }
    }
    if (check_rows("logit_rows", batch.logit_rows, batch.num_logit_rows, batch.num_tokens, error)) return 1;
    if (check_rows("state_rows", batch.state_rows, batch.num_state_rows, batch.num_tokens, error)) return 1;
    if (sampling && (sampling->num_rows != batch.num_logit_rows || sampling->vocab_size != vocab)) {
        return error.fail("sampling has %d rows of %d, the batch %d of %lld", sampling->num_rows, sampling->vocab_size,
                          batch.num_logit_rows, static_cast<long long>(vocab));
    }
    if (sampling && check_sampling(*sampling, error)) return 1;
    if (check_attention(attention_args(decoder, batch), error)) return 1;
    return check_slots(batch.slot_mapping, batch.num_tokens, decoder.layers[0].cache, error);
}

class ForwardPass {
public:
    ForwardPass(const quire_decoder& decoder, const quire_batch& batch) : decoder_(decoder), batch_(batch) {}

    void run() {
        allocate();
        attention_.plan(attention_args(decoder_, batch_));
        embed();
        for (int32_t i = 0; i < decoder_.num_layers; ++i) {
            attend(decoder_.layers[i]);
            feed_forward(decoder_.layers[i]);
            if (batch_.layers_computed) __atomic_fetch_add(batch_.layers_computed, 1, __ATOMIC_RELAXED);
        }
        if (batch_.num_state_rows > 0) states();
        if (batch_.num_logit_rows > 0) head();
    }

    // [num_logit_rows, vocab]
    float* logits() const { return logits_; }

private:
    void allocate() {
        static thread_local Arena arena;
        const quire_layer& layer = decoder_.layers[0];
        const int64_t tokens = batch_.num_tokens, some = std::min(tokens, kFeedForwardRows);
        const auto room = [](const quire_packed_matrix& matrix, int64_t rows) {
            return rows * prepared_stride(matrix.format, matrix.inputs);
        };
        const int64_t prepared = std::max({room(layer.qkv, tokens), room(layer.output, tokens), room(layer.gate_up, some),
                                           room(layer.down, some), room(decoder_.head, batch_.num_logit_rows)});
        const int64_t qkv = qkv_size(decoder_), attended = layer.output.inputs, gated = layer.gate_up.outputs / 2;
        const int64_t logits = batch_.logits ? 0 : batch_.num_logit_rows * decoder_.head.outputs * 4;
        arena.reserve(Rows::bytes(tokens, decoder_.hidden) + Rows::bytes(tokens, qkv) +
                      Arena::round_up(tokens * attended * 4) + Rows::bytes(some, gated) + Arena::round_up(prepared) +
                      Arena::round_up(logits));
        residual_ = Rows::in(arena, tokens, decoder_.hidden);
        qkv_ = Rows::in(arena, tokens, qkv);
        attended_ = {reinterpret_cast<float*>(arena.take(tokens * attended * 4)), attended};
        gated_ = Rows::in(arena, some, gated);
        // What a product reads never outlives the product: one room serves all.
        prepared_ = arena.take(prepared);
        logits_ = batch_.logits ? batch_.logits : reinterpret_cast<float*>(arena.take(logits));
    }

    void embed() {
        for_each_item(batch_.num_tokens, int64_t{batch_.num_tokens} * decoder_.hidden >= kParallelElements,
                      [&](int64_t token) { read_embedding(decoder_, batch_.token_ids[token], residual_[token]); });
    }

    void attend(const quire_layer& layer) {
        const int64_t tokens = batch_.num_tokens;
        linear(layer.qkv, normed(layer.qkv, layer.input_norm, residual_, tokens), qkv_.data, qkv_.stride,
               QUIRE_EPILOGUE_STORE);
        rotate_and_store({layer.cache, qkv_.data, batch_.cos, batch_.sin, layer.q_norm, layer.k_norm, batch_.slot_mapping,
                          qkv_.stride, batch_.num_tokens, decoder_.num_heads, decoder_.rotary_dim, decoder_.rms_norm_eps});
        attention_.run({layer.cache, qkv_.data, attended_.data, layer.sliding_window});
        linear(layer.output, prepared(layer.output, attended_, tokens), residual_.data, residual_.stride,
               QUIRE_EPILOGUE_ADD);
    }

    void feed_forward(const quire_layer& layer) {
        for (int64_t first = 0; first < batch_.num_tokens; first += kFeedForwardRows) {
            const int64_t count = std::min(kFeedForwardRows, batch_.num_tokens - first);
            const Rows residual = {residual_[first], residual_.stride};
            linear(layer.gate_up, normed(layer.gate_up, layer.attention_norm, residual, count), gated_.data, gated_.stride,
                   QUIRE_EPILOGUE_SILU_MUL);
            linear(layer.down, prepared(layer.down, gated_, count), residual.data, residual.stride, QUIRE_EPILOGUE_ADD);
        }
    }

    void states() {
        const int64_t count = batch_.num_state_rows, hidden = decoder_.hidden;
        for_each_item(count, count * hidden >= kParallelElements,
                      [&](int64_t row) { final_norm(batch_.state_rows[row], batch_.states + row * hidden); });
    }

    void head() {
        const quire_packed_matrix& matrix = decoder_.head;
        const PreparedRows rows = prepare_rows(
            matrix.format, matrix.inputs, batch_.num_logit_rows, prepared_,
            [&](int64_t row, float* to) { final_norm(batch_.logit_rows[row], to); });
        linear(matrix, rows, logits_, matrix.outputs, QUIRE_EPILOGUE_STORE);
    }

    void final_norm(int32_t token, float* to) const {
        row_kernels().rms_norm(residual_[token], decoder_.norm, decoder_.hidden, decoder_.rms_norm_eps, to);
    }

    PreparedRows normed(const quire_packed_matrix& matrix, const float* weight, const Rows& rows, int64_t count) {
        return prepare_rows(matrix.format, matrix.inputs, count, prepared_, [&](int64_t row, float* to) {
            row_kernels().rms_norm(rows[row], weight, decoder_.hidden, decoder_.rms_norm_eps, to);
        });
    }

    PreparedRows prepared(const quire_packed_matrix& matrix, const Rows& rows, int64_t count) {
        if (reads_plain_rows(matrix.format, matrix.inputs)) {
            return {reinterpret_cast<const char*>(rows.data), rows.stride * 4, count};
        }
        return prepare_rows(matrix.format, matrix.inputs, count, prepared_, [&](int64_t row, float* to) {
            std::memcpy(to, rows[row], matrix.inputs * sizeof(float));
        });
    }

    const quire_decoder& decoder_;
    const quire_batch& batch_;
    AttentionPlan& attention_ = thread_plan();
    Rows residual_, qkv_, attended_, gated_;
    char* prepared_;
    float* logits_;
};

}  // namespace
}  // namespace quire

int32_t quire_step(const quire_decoder* decoder, const quire_batch* batch, const quire_sampling_args* sampling,
                   char* error, size_t error_size) {
    const quire::ErrorBuffer message{error, error_size};
    if (quire::check(*decoder, *batch, sampling, message)) return 1;
    try {
        quire::ForwardPass pass(*decoder, *batch);
        pass.run();
        if (sampling) {
            quire_sampling_args args = *sampling;
            args.logits = pass.logits();
            args.logits_stride = decoder->head.outputs;
            quire::sample(args);
        }
    } catch (const std::bad_alloc&) {
        return message.fail("batch has %d tokens, for which there is no memory", batch->num_tokens);
    }
    return 0;
}
