#include "cpu/cpu.h"

#include <string.h>

#ifdef VULORA_CPU_X86
extern const cpu_kernels cpu_kernels_avx2, cpu_kernels_avx512;

static bool runs_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
static bool runs_avx512(void) {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}

static const struct {
    const cpu_kernels *kernels;
    bool (*runs)(void);
} SETS[] = {{&cpu_kernels_avx512, runs_avx512}, {&cpu_kernels_avx2, runs_avx2}};
enum { SET_COUNT = sizeof SETS / sizeof *SETS };

const cpu_kernels *cpu_kernels_at(int i) {
    for (int s = 0; s < SET_COUNT; s++)
        if (SETS[s].runs() && i-- == 0) return SETS[s].kernels;
    return NULL;
}
#else
const cpu_kernels *cpu_kernels_at(int i) {
    (void)i;
    return NULL;
}
#endif

bool cpu_kernels_find(const char *name, const cpu_kernels **kernels, error *err) {
    *kernels = NULL;
    if (strcmp(name, "portable") == 0) return true;
    if (strcmp(name, "auto") == 0) {
        *kernels = cpu_kernels_at(0);
        return true;
    }
    for (int i = 0; (*kernels = cpu_kernels_at(i)); i++)
        if (strcmp((*kernels)->name, name) == 0) return true;
    return error_set(err, "--cpu-kernels %s: this processor does not run them; use auto or portable", name);
}
