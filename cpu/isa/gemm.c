#include "cpu/isa/vec.h"
size_t isa_gemm_scratch(const cpu_gemm *g, int threads) { return (void)g, (void)threads, 0; }
void isa_gemm_run(const cpu_gemm *g, int threads, void *scratch) { (void)g, (void)threads, (void)scratch; }
