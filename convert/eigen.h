/* What singular values need of LAPACK (which OpenBLAS brings): eigenvectors of symmetric matrices and decompositions, double precision.
   "By rows" is C's order, which is LAPACK's with every matrix transposed. */
#ifndef VULORA_CONVERT_EIGEN_H
#define VULORA_CONVERT_EIGEN_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

/* The `count` largest eigenvalues of a symmetric matrix without negative ones, and their vectors. a: [n, n], its lower triangle by
   columns; overwritten. values: [count], descending. vectors: [count, n], orthonormal. */
bool eigen_leading(double *a, int64_t n, int64_t count, double *values, double *vectors, error *err);

/* a = q r by rows. a: [m, k]; becomes q, [m, min(m, k)], with rows still k apart. r: [min(m, k), k]. */
bool qr_rows(double *a, int64_t m, int64_t k, double *r, error *err);
/* a = l q by rows. a: [k, n]; becomes q, [min(k, n), n]. l: [k, min(k, n)]. */
bool lq_rows(double *a, int64_t k, int64_t n, double *l, error *err);

/* a = u diag(s) vt by rows. a: [m, n], overwritten; u: [m, min], s: [min], descending, vt: [min, n]. */
bool svd_rows(double *a, int64_t m, int64_t n, double *u, double *s, double *vt, error *err);

#endif
