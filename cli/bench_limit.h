/* What a device can do at best, measured here and now: the yardstick beside `bench`'s figures. */
#ifndef VULORA_CLI_BENCH_LIMIT_H
#define VULORA_CLI_BENCH_LIMIT_H

#include "graph/device.h"

typedef struct bench_limit {
    double flops; /* operations a second in a large matrix product, two a multiply-add */
    double bytes; /* bytes a second in adding two large arrays, reading and writing counted */
} bench_limit;

bool bench_limit_measure(device *d, bench_limit *limit, error *err);

#endif
