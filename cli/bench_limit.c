#include "cli/bench_limit.h"

#include "base/memory.h"
#include "cli/terminal.h"
#include "graph/plan.h"
#include "ops/ops.h"

#include <stdlib.h>

enum { SIDE = 1024, ARRAY = 1 << 23, RUNS = 3 };

/* The fastest of RUNS, after one that warms up. Takes over the tape. */
static bool fastest(tape *t, double *seconds, error *err) {
    plan *p = plan_create(t, err);
    bool ok = p && plan_run(p, err);
    *seconds = 1e300;
    for (int i = 0; ok && i < RUNS; i++) {
        double start = terminal_clock();
        ok = plan_run(p, err);
        double took = terminal_clock() - start;
        if (took < *seconds) *seconds = took;
    }
    plan_free(p);
    return ok;
}

static bool measure_product(device *d, double *flops, error *err) {
    const int64_t square[] = {SIDE, SIDE};
    float *values = memory_new((size_t)SIDE * SIDE, sizeof *values);
    tensor_pool *pool = tensor_pool_create(d);
    tensor *weight = tensor_pool_constant(pool, "matrix", DTYPE_F32, 2, square, values, err);
    double seconds;
    tape *t = weight ? tape_create(d) : NULL;
    if (t) tape_keep(op_linear(t, tape_input(t, "x", DTYPE_COUNT, 2, square), weight, NULL, NULL, 1));
    bool ok = t && fastest(t, &seconds, err);
    if (ok) *flops = 2.0 * SIDE * SIDE * SIDE / seconds;
    tensor_pool_free(pool);
    free(values);
    return ok;
}

static bool measure_memory(device *d, double *bytes, error *err) {
    const int64_t array[] = {ARRAY / SIDE, SIDE};
    double seconds;
    tape *t = tape_create(d);
    tape_keep(op_add(t, tape_input(t, "a", DTYPE_COUNT, 2, array), tape_input(t, "b", DTYPE_COUNT, 2, array)));
    if (!fastest(t, &seconds, err)) return false;
    *bytes = 3.0 * ARRAY * (double)dtype_size(d->activation) / seconds;
    return true;
}

bool bench_limit_measure(device *d, bench_limit *limit, error *err) {
    return measure_product(d, &limit->flops, err) && measure_memory(d, &limit->bytes, err);
}
