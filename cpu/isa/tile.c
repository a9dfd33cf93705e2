/* The register tile that every kernel of this folder is made of. */
#include "cpu/isa/vec.h"

/* Element (i, at) of the left operand: rows[i][at], or where rows is NULL columns[at * ld + i]. */
typedef struct operand {
    const float *const *rows;
    const float *columns;
    int64_t ld;
} operand;

INLINE void tile(const int rows, const int vectors, int64_t k, const operand a, const float *b, int64_t ldb, float *c, int64_t ldc,
                 bool add) {
    vec sum[TILE_ROWS][3];
    const float *p[TILE_ROWS];
    UNROLL for (int i = 0; i < rows; i++) {
        p[i] = a.rows ? a.rows[i] : a.columns + i;
        UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = add ? vec_load(c + i * ldc + j * LANES) : vec_splat(0);
    }
    for (int64_t at = 0; at < k; at++) {
        vec w[3];
        UNROLL for (int j = 0; j < vectors; j++) w[j] = vec_load(b + at * ldb + j * LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            vec x = vec_splat(a.rows ? p[i][at] : p[0][at * a.ld + i]);
            UNROLL for (int j = 0; j < vectors; j++) sum[i][j] += x * w[j];
        }
    }
    UNROLL for (int i = 0; i < rows; i++) { UNROLL for (int j = 0; j < vectors; j++) vec_store(c + i * ldc + j * LANES, sum[i][j]); }
}

#define ONE(r, v) \
    if (vectors == v) tile(r, v, k, left, b, ldb, c, ldc, add)
#ifdef __AVX512F__
#define CASE(r) \
    case r: \
        ONE(r, 2); \
        else ONE(r, 3); \
        else ONE(r, 1); \
        return;
#define CASES CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#else
#define CASE(r) \
    case r: \
        ONE(r, 2); \
        else ONE(r, 1); \
        return;
#define CASES CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#endif

void isa_tile_run(int rows, int vectors, int64_t k, const float *const *a, const float *b, int64_t ldb, float *c, int64_t ldc, bool add) {
    const operand left = {.rows = a};
    switch (rows) {
        CASES
    default: return;
    }
}

void isa_tile_columns_run(int rows, int vectors, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc,
                          bool add) {
    const operand left = {.columns = a, .ld = lda};
    switch (rows) {
        CASES
    default: return;
    }
}
