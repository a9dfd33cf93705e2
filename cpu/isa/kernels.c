/* The table of this instruction set's kernels. */
#include "cpu/isa/vec.h"

extern const cpu_kernels CPU_NAMED(cpu_kernels);
const cpu_kernels CPU_NAMED(cpu_kernels) = {.name = CPU_TEXT(CPU_ISA),
                                            .fp32 = CPU_TEXT(CPU_ISA),
                                            .gemm_scratch = isa_gemm_scratch,
                                            .gemm = isa_gemm_run,
                                            .weight_grad_scratch = isa_weight_grad_scratch,
                                            .weight_grad = isa_weight_grad_run,
                                            .winograd_serves = isa_winograd_serves,
                                            .winograd_scratch = isa_winograd_scratch,
                                            .winograd = isa_winograd_run,
                                            .attention_scratch = isa_attention_scratch,
                                            .attention = isa_attention_run,
                                            .attention_grad_scratch = isa_attention_grad_scratch,
                                            .attention_grad = isa_attention_grad_run};
