#include "ops/ops.h"

/* clang-format off */
/* Every operation once. */
#define OPS(F) \
    F(GEMM) F(CONV) F(CONV_DATA) F(CONV_WEIGHT) \
    F(GROUP_NORM) F(GROUP_NORM_GRAD) F(LAYER_NORM) F(LAYER_NORM_GRAD) F(NORM_WEIGHT) F(ATTENTION) F(ATTENTION_GRAD) \
    F(ACTIVATION) F(ACTIVATION_GRAD) F(GEGLU) F(GEGLU_GRAD) F(ADD) F(CONCAT) F(SPLIT) F(UPSAMPLE) F(UPSAMPLE_GRAD) F(SUM_PIXELS) \
    F(SCALE) F(COLUMN_SUM) F(MATMUL) F(PRODUCTS) F(PRODUCTS_GRAD) F(MIX) F(MIX_WEIGHT) F(ROTATE) F(ROTATE_WEIGHT) F(TAKE) F(TAKE_GRAD) \
    F(CAYLEY) F(CAYLEY_GRAD) F(DORA) F(DORA_GRAD) F(DROPOUT) \
    F(WEIGHT_SQUARES) F(WEIGHT_PRODUCT) F(FACTOR_GRAM) F(DORA_FACTORED) F(DORA_FACTORED_GRAD) \
    F(MSE) F(MSE_GRAD) F(SQUARE_SUM) F(GRAD_NORM) F(ADAMW) F(GATE_GRADIENT) F(GRAM) F(TOTAL) F(LIMIT)
/* clang-format on */

#define DECLARE(name) extern const op *const OP_##name;
OPS(DECLARE)

const op *const *op_table(void) {
#define ENTRY(name) OP_##name,
    static const op *table[64];
    const op *const all[] = {OPS(ENTRY)};
    for (int i = 0; i < (int)(sizeof all / sizeof *all); i++) table[i] = all[i];
    return table;
}
