/* The table of this instruction set's kernels. */
#include "cpu/isa/vec.h"

extern const cpu_kernels CPU_NAMED(cpu_kernels);
const cpu_kernels CPU_NAMED(cpu_kernels) = {.name = CPU_TEXT(CPU_ISA),
                                            .gemm_scratch = gemm_scratch,
                                            .gemm = gemm_run,
                                            .winograd_serves = winograd_serves,
                                            .winograd_scratch = winograd_scratch,
                                            .winograd = winograd_run,
                                            .attention_scratch = attention_scratch,
                                            .attention = attention_run,
                                            .attention_grad_scratch = attention_grad_scratch,
                                            .attention_grad = attention_grad_run};
