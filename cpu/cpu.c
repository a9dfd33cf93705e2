#define _DEFAULT_SOURCE /* syscall */
#include "cpu/cpu.h"

#include <string.h>

#ifdef VULORA_CPU_X86
#include <xmmintrin.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern const cpu_kernels cpu_kernels_avx2, cpu_kernels_avx512, cpu_kernels_avx512bf16, cpu_kernels_amx;

static bool runs_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
static bool runs_avx512(void) {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}
static bool runs_avx512bf16(void) { return runs_avx512() && __builtin_cpu_supports("avx512bf16"); }

/* Linux gives a process the tile registers, 8 KiB more for each of its threads, when it asks for them. */
static bool tiles_permitted(void) {
#ifdef __linux__
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}
static bool runs_amx(void) {
    return runs_avx512bf16() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && tiles_permitted();
}

static const struct {
    const cpu_kernels *kernels;
    bool (*runs)(void);
} SETS[] = {{&cpu_kernels_amx, runs_amx},
            {&cpu_kernels_avx512bf16, runs_avx512bf16},
            {&cpu_kernels_avx512, runs_avx512},
            {&cpu_kernels_avx2, runs_avx2}};
enum { SET_COUNT = sizeof SETS / sizeof *SETS };

const cpu_kernels *cpu_kernels_at(int i) {
    for (int s = 0; s < SET_COUNT; s++)
        if (SETS[s].runs() && i-- == 0) return SETS[s].kernels;
    return NULL;
}

void cpu_tiny_to_zero(int threads) {
    enum { FLUSH_TO_ZERO = 0x8000, DENORMALS_ARE_ZERO = 0x40 };
#pragma omp parallel num_threads(threads)
    _mm_setcsr(_mm_getcsr() | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO);
}
#else
const cpu_kernels *cpu_kernels_at(int i) {
    (void)i;
    return NULL;
}

void cpu_tiny_to_zero(int threads) { (void)threads; }
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
