/* Learning rate over the steps of a training. */
#ifndef VULORA_TRAIN_RATES_H
#define VULORA_TRAIN_RATES_H

#include <stdbool.h>
#include <stdint.h>

typedef enum rate_schedule { RATE_CONSTANT, RATE_LINEAR, RATE_COSINE, RATE_SCHEDULE_COUNT } rate_schedule;

const char *rate_schedule_name(rate_schedule schedule);
bool rate_schedule_find(rate_schedule *schedule, const char *name);

/* What the base rate is multiplied with at update `step` (0 the first) of `steps`, as diffusers' get_scheduler: rising linearly from 0
   over the first `warmup` updates, then 1, or falling to 0 at the end along a line or half a cosine. */
double rate_factor(rate_schedule schedule, int64_t step, int64_t steps, int64_t warmup);

#endif
