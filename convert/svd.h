/* The best matrix of a given rank: truncated singular value decompositions of weights' changes, which is how any change becomes a LoRA.
   All of it is deterministic: the same input and the same number of threads give the same bytes. */
#ifndef VULORA_CONVERT_SVD_H
#define VULORA_CONVERT_SVD_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

/* a ~ u diag(s) vt. The columns of u and the rows of vt are orthonormal; where s is 0 (below 5e-7 of the largest one), the factor on the
   longer side is 0 instead. */
typedef struct svd {
    int64_t m, n, rank;
    float *u;     /* [m, rank] */
    float *s;     /* [rank], descending */
    float *vt;    /* [rank, n] */
    double norm;  /* Frobenius norm of the whole */
    double error; /* of what was cut: Frobenius norm, relative to that of the whole; 0 for a whole of zeros */
} svd;

/* a: [m, n]. most: the singular values wanted; 0 or more than there are: all. The error of what was cut is within 1e-4 (relative) of the
   smallest possible (Eckart and Young), or below 1e-6. Refuses NaN and infinity. On error nothing is left to free. */
bool svd_matrix(const float *a, int64_t m, int64_t n, int64_t most, svd *out, error *err);

/* The same of the product up down, which is never made: through QR decompositions of both factors. up: [m, k], down: [k, n]. There are
   min(m, n, k) singular values. */
bool svd_product(const float *up, const float *down, int64_t m, int64_t k, int64_t n, int64_t most, svd *out, error *err);

void svd_free(svd *d);

#endif
