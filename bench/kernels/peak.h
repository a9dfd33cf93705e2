/* The fastest that this processor multiplies and adds, whatever it is given: what kernels are measured against. */
#ifndef VULORA_BENCH_PEAK_H
#define VULORA_BENCH_PEAK_H

#include <stdbool.h>

/* In floating-point operations a second, of `threads` threads together: chains of multiply-adds that touch no memory, in the widest
   instructions of a set of kernels (cpu/cpu.h), on fp32 or on bf16 operands. The best of several short runs; 0 for an unknown set. */
double peak_measure(const char *kernels, bool bf16, int threads);

/* Seconds on a clock that never jumps. */
double bench_clock(void);

#endif
