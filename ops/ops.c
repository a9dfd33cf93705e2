#include "ops/ops.h"

extern const op *const OP_GEMM,
    *const OP_CONV, *const OP_CONV_DATA,
                        *const OP_CONV_WEIGHT,
                            *const OP_GROUP_NORM,
                                *const OP_GROUP_NORM_GRAD,
                                    *const OP_LAYER_NORM,
                                        *const OP_LAYER_NORM_GRAD,
                                            *const OP_ATTENTION,
                                                *const OP_ATTENTION_GRAD,
                                                    *const OP_ACTIVATION,
                                                        *const OP_ACTIVATION_GRAD,
                                                            *const OP_GEGLU, *const OP_GEGLU_GRAD,
                                                                                 *const OP_ADD,
                                                                                     *const OP_CONCAT,
                                                                                         *const OP_SPLIT,
                                                                                             *const OP_UPSAMPLE,
                                                                                                 *const OP_UPSAMPLE_GRAD,
                                                                                                     *const OP_SUM_PIXELS,
                                                                                                         *const OP_MSE,
                                                                                                             *const OP_MSE_GRAD,
                                                                                                                 *const OP_SQUARE_SUM,
                                                                                                                     *const OP_GRAD_NORM,
                                                                                                                         *const OP_ADAMW;

const op *const *op_table(void) {
    static const op *table[32];
    const op *const all[] = {OP_GEMM,          OP_CONV,
                             OP_CONV_DATA,     OP_CONV_WEIGHT,
                             OP_GROUP_NORM,    OP_GROUP_NORM_GRAD,
                             OP_LAYER_NORM,    OP_LAYER_NORM_GRAD,
                             OP_ATTENTION,     OP_ATTENTION_GRAD,
                             OP_ACTIVATION,    OP_ACTIVATION_GRAD,
                             OP_GEGLU,         OP_GEGLU_GRAD,
                             OP_ADD,           OP_CONCAT,
                             OP_SPLIT,         OP_UPSAMPLE,
                             OP_UPSAMPLE_GRAD, OP_SUM_PIXELS,
                             OP_MSE,           OP_MSE_GRAD,
                             OP_SQUARE_SUM,    OP_GRAD_NORM,
                             OP_ADAMW};
    for (int i = 0; i < (int)(sizeof all / sizeof *all); i++) table[i] = all[i];
    return table;
}
