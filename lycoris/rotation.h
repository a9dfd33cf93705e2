/* Block-diagonal rotations on the host, in double: what files of OFT and BOFT stand for. */
#ifndef VULORA_LYCORIS_ROTATION_H
#define VULORA_LYCORIS_ROTATION_H

#include <stdint.h>

typedef struct rotation {
    int64_t stages, blocks, size;
    double *values; /* [stages, blocks, size, size] */
} rotation;

rotation rotation_new(int64_t stages, int64_t blocks, int64_t size);
void rotation_free(rotation *r);
/* Every block becomes its transpose. */
void rotation_transpose(rotation *r);

/* r, q: [n, n], q antisymmetric. r = (I - q) (I + q)^-1. */
void rotation_cayley(double *r, const double *q, int64_t n);
/* PEFT's series for that, with q's sign turned: I + 2 q + ... + 2 q^(terms - 2) + q^(terms - 1), which it cuts off as in its source for
   fewer than five terms. power: [n, n], overwritten. */
void rotation_series(double *r, const double *q, double *power, int64_t n, int terms);

/* A row of blocks * size numbers by one stage, as op_rotate does it (not transposed): row[g, j] = sum over i of values[g, i, j] row[g, i].
   With several stages each takes its blocks by a butterfly. work: as long as the row. */
void rotation_turn(const rotation *r, int64_t stage, double *row, double *work);

#endif
