/* The table of this instruction set's kernels: those of avx512, and of this folder where a call asks for bf16. */
#include "cpu/bf16/bf16.h"

#define CPU_AVX512(x) x##_avx512
size_t CPU_AVX512(cpu_gemm_scratch)(const cpu_gemm *g, int threads);
void CPU_AVX512(cpu_gemm_run)(const cpu_gemm *g, int threads, void *scratch);
size_t CPU_AVX512(cpu_weight_grad_scratch)(const cpu_weight_grad *g, int threads);
void CPU_AVX512(cpu_weight_grad_run)(const cpu_weight_grad *g, int threads, void *scratch);
bool CPU_AVX512(cpu_winograd_serves)(const cpu_gemm *g);
size_t CPU_AVX512(cpu_winograd_scratch)(const cpu_gemm *g, int threads);
void CPU_AVX512(cpu_winograd_run)(const cpu_gemm *g, int threads, void *scratch);
size_t CPU_AVX512(cpu_attention_scratch)(const cpu_attention *a, int threads);
void CPU_AVX512(cpu_attention_run)(const cpu_attention *a, int threads, void *scratch);
size_t CPU_AVX512(cpu_attention_grad_scratch)(const cpu_attention *a, int threads);
void CPU_AVX512(cpu_attention_grad_run)(const cpu_attention *a, int threads, void *scratch);

static bool gemm_serves(const cpu_gemm *g) { return g->bf16 && bf16_layout_serves(g); }

static size_t gemm_scratch(const cpu_gemm *g, int threads) {
    return gemm_serves(g) ? bf16_gemm_scratch(g, threads) : CPU_AVX512(cpu_gemm_scratch)(g, threads);
}

static void gemm(const cpu_gemm *g, int threads, void *scratch) {
    if (gemm_serves(g))
        bf16_gemm_run(g, threads, scratch);
    else
        CPU_AVX512(cpu_gemm_run)(g, threads, scratch);
}

static size_t weight_grad_scratch(const cpu_weight_grad *g, int threads) {
    return g->bf16 && !g->gather ? bf16_weight_grad_scratch(g, threads) : CPU_AVX512(cpu_weight_grad_scratch)(g, threads);
}

static void weight_grad(const cpu_weight_grad *g, int threads, void *scratch) {
    if (g->bf16 && !g->gather)
        bf16_weight_grad_run(g, threads, scratch);
    else
        CPU_AVX512(cpu_weight_grad_run)(g, threads, scratch);
}

static size_t attention_scratch(const cpu_attention *a, int threads) {
    return a->bf16 ? bf16_attention_scratch(a, threads) : CPU_AVX512(cpu_attention_scratch)(a, threads);
}

static void attention(const cpu_attention *a, int threads, void *scratch) {
    if (a->bf16)
        bf16_attention_run(a, threads, scratch);
    else
        CPU_AVX512(cpu_attention_run)(a, threads, scratch);
}

static size_t attention_grad_scratch(const cpu_attention *a, int threads) {
    return a->bf16 ? bf16_attention_grad_scratch(a, threads) : CPU_AVX512(cpu_attention_grad_scratch)(a, threads);
}

static void attention_grad(const cpu_attention *a, int threads, void *scratch) {
    if (a->bf16)
        bf16_attention_grad_run(a, threads, scratch);
    else
        CPU_AVX512(cpu_attention_grad_run)(a, threads, scratch);
}

/* fp32 by Winograd against bf16 directly: AMX multiplies 16 times as fast as fp32 vectors, AVX-512 BF16 twice, which Winograd's 4 beats
   except at small images, where transforming weights takes longer than using them. */
static bool winograd_serves(const cpu_gemm *g) {
#ifdef __AMX_BF16__
    return !g->bf16 && CPU_AVX512(cpu_winograd_serves)(g);
#else
    return CPU_AVX512(cpu_winograd_serves)(g) && (!g->bf16 || g->gather->height * g->gather->width >= 256);
#endif
}

extern const cpu_kernels CPU_NAMED(cpu_kernels);
const cpu_kernels CPU_NAMED(cpu_kernels) = {.name = CPU_TEXT(CPU_ISA),
                                            .fp32 = "avx512",
                                            .bf16 = true,
                                            .narrow = gemm_serves,
                                            .pack_bytes = bf16_pack_bytes,
                                            .pack = bf16_pack,
                                            .gemm_scratch = gemm_scratch,
                                            .gemm = gemm,
                                            .weight_grad_scratch = weight_grad_scratch,
                                            .weight_grad = weight_grad,
                                            .winograd_serves = winograd_serves,
                                            .winograd_scratch = CPU_AVX512(cpu_winograd_scratch),
                                            .winograd = CPU_AVX512(cpu_winograd_run),
                                            .attention_scratch = attention_scratch,
                                            .attention = attention,
                                            .attention_grad_scratch = attention_grad_scratch,
                                            .attention_grad = attention_grad};
