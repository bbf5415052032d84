/* The C ABI of packed linear layers. ../native_linear.py declares the same structures for ctypes. Rules: quire_kernels.h. */
#ifndef QUIRE_LINEAR_H
#define QUIRE_LINEAR_H

#include "quire_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum quire_packed_format {
    QUIRE_PACKED_FLOAT32 = 0,
    QUIRE_PACKED_BFLOAT16 = 1,
    QUIRE_PACKED_INT8 = 2,             /* a scale per output; inputs become int8 too, a scale per row */
    QUIRE_PACKED_INT8_WEIGHT_ONLY = 3, /* a scale per output; inputs stay float32 */
    QUIRE_PACKED_INT4 = 4              /* a scale per output and 32 inputs; inputs stay float32 */
};

enum quire_epilogue {
    QUIRE_EPILOGUE_STORE = 0,   /* output = product */
    QUIRE_EPILOGUE_ADD = 1,     /* output += product */
    /* output[16 p + i] = silu(product[32 p + i]) * product[32 p + 16 + i]; outputs must be a multiple of 32 */
    QUIRE_EPILOGUE_SILU_MUL = 2
};

typedef struct quire_packed_matrix {
    const void* data; /* 64-byte aligned, quire_packed_bytes() long */
    const float* bias; /* [outputs] or null */
    int64_t outputs, inputs;
    int32_t format; /* quire_packed_format */
} quire_packed_matrix;

/* 0 for a format that does not exist. */
QUIRE_EXPORT int64_t quire_packed_bytes(int32_t format, int64_t outputs, int64_t inputs);

/* Packs rows [outputs], each an address of `inputs` elements of `dtype`, null for an output of zeros; quantises on the way. */
QUIRE_EXPORT int32_t quire_pack(int32_t format, int32_t dtype, const uint64_t* rows, int64_t outputs, int64_t inputs,
                                void* packed, char* error, size_t error_size);

/* Writes the values that the packed matrix stands for: float32 [outputs, inputs], contiguous. */
QUIRE_EXPORT int32_t quire_unpack(const quire_packed_matrix* weight, float* values, char* error, size_t error_size);

/* x float32 [rows, inputs], output float32 [rows, outputs] (half of them with SILU_MUL); strides count elements. */
QUIRE_EXPORT int32_t quire_linear(const quire_packed_matrix* weight, const float* x, int64_t x_stride, int64_t rows,
                                  float* output, int64_t output_stride, int32_t epilogue, char* error,
                                  size_t error_size);

#ifdef __cplusplus
}
#endif
#endif
