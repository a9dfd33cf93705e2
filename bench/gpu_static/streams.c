/* Kernels that memory bounds, judged by what could keep memory from being the bound. */
#include "bench/gpu_static/gpu_static.h"

#include <string.h>

enum { LEAST_ACCESS = 8 /* bytes a lane */ };

/* Vector and scalar instructions for a byte moved: 1.5, or what the arithmetic takes where it has exponentials. A card can issue 12 to 20
   of them in the time of a byte (the column "alu" says what share of that is used), so these limits are far from the bound. waves: on a
   SIMD, half as many on GCN, where an instruction takes four clocks; 1: the launch has no more workgroups than the card has units. */
static const struct limit {
    const char *shader;
    double instructions;
    int waves;
} limits[] = {
    {"group_norm", 2.5, 1}, /* SiLU, and two sums over registers */
    {"group_norm_stats", 1.5, 8},
    {"group_norm_apply", 1.5, 8},
    {"group_norm_backward", 3, 1},
    {"group_norm_backward_stats", 3.75, 8}, /* 12 instructions for SiLU's slope and two sums, for two half floats */
    {"group_norm_backward_apply", 2.5, 8},
    {"layer_norm", 1.5, 8},
    {"layer_norm_backward", 1.5, 6}, /* rows of 1280 stay in registers */
    {"norm_weight", 3.75, 8},        /* as group_norm_backward_stats */
    {"norm_weight_finish", 2, 1},    /* a few loads a thread: counting them is most of it */
    {"activation", 1.75, 8},
    {"activation_backward", 1.75, 8},
    {"geglu", 3, 8}, /* 14 instructions for Phi, for three half floats */
    {"geglu_backward", 2.5, 8},
    {"add", 1.5, 8},
    {"concat", 1.5, 8},
    {"split", 1.5, 8},
    {"upsample", 1.5, 8},
    {"upsample_backward", 1.5, 8},
    {"sum_pixels", 1.5, 8},
    {"mse", 1.5, 8},
    {"mse_backward", 1.5, 8},
    {"square_sum", 1.5, 8},
    {"adamw", 1.5, 8},
    {"reduce", 1.5, 8},
};

/* shader: the kernel's name and perhaps its element types behind it. */
static const struct limit *find(const char *shader) {
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        size_t n = strlen(limits[i].shader);
        if (strncmp(shader, limits[i].shader, n)) continue;
        const char *types = shader + n + (shader[n] == '_');
        if (strspn(types, "fh") == strlen(types)) return &limits[i];
    }
    return NULL;
}

/* Cards without mixed-precision multiply-adds convert every half float: one instruction more for two bytes. */
static double conversions(const char *types, const gpu_rates *rates) { return rates->gcn && strchr(types, 'h') ? 0.6 : 0; }

bool stream_judge(const char *shader, const gpu_rates *rates, const isa *code, const hot_loop *h, int waves, stream_verdict *out) {
    const struct limit *l = find(shader);
    if (!l || h->total.memory_bytes <= 0) return false;
    const mix *m = &h->total;
    double clocks = m->valu > m->transcendental ? m->valu : m->transcendental;
    *out = (stream_verdict){.access = isa_least_access(code, h),
                            .alu = clocks / rates->simds / (m->memory_bytes * code->wave / rates->memory_bytes)};
    out->slow = (m->vector + m->scalar) / m->memory_bytes > l->instructions + conversions(shader + strlen(l->shader), rates) + 0.05;
    out->narrow = out->access < LEAST_ACCESS;
    out->few_waves = waves < (rates->gcn ? (l->waves + 1) / 2 : l->waves);
    return true;
}
