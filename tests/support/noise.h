/* Random numbers for tests, the same in every run. */
#ifndef VULORA_TESTS_SUPPORT_NOISE_H
#define VULORA_TESTS_SUPPORT_NOISE_H

#include <stdint.h>

/* `count` nearly normal numbers of mean 0 and standard deviation `size`, the next of one sequence; free them. */
float *noise_new(int64_t count, double size);

#endif
