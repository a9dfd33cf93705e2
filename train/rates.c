#include "train/rates.h"

#include <math.h>
#include <string.h>

static const double PI = 3.14159265358979323846;

static double constant(double progress) { return progress < 0 ? 0 : 1; }
static double linear(double progress) { return 1 - progress; }
static double cosine(double progress) { return 0.5 * (1 + cos(PI * progress)); }

static const struct {
    const char *name;
    double (*factor)(double progress); /* 0..1 of what comes after warm-up */
} SCHEDULES[RATE_SCHEDULE_COUNT] = {
    [RATE_CONSTANT] = {"constant", constant}, [RATE_LINEAR] = {"linear", linear}, [RATE_COSINE] = {"cosine", cosine}};

const char *rate_schedule_name(rate_schedule schedule) { return SCHEDULES[schedule].name; }

bool rate_schedule_find(rate_schedule *schedule, const char *name) {
    for (int i = 0; i < RATE_SCHEDULE_COUNT; i++)
        if (strcmp(SCHEDULES[i].name, name) == 0) {
            *schedule = (rate_schedule)i;
            return true;
        }
    return false;
}

double rate_factor(rate_schedule schedule, int64_t step, int64_t steps, int64_t warmup) {
    if (step < warmup) return (double)step / (double)warmup;
    double progress = steps > warmup ? (double)(step - warmup) / (double)(steps - warmup) : 0;
    return SCHEDULES[schedule].factor(progress > 1 ? 1 : progress);
}
