/* The disassembly of a kernel: what each instruction costs, and where its loops are. */
#include "bench/gpu_static/gpu_static.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Cards: RX 580 (256 GB/s, 36 units, 1.27 GHz), Radeon VII (1024, 60, 1.4), RX 5700 XT (448, 40, 1.8), RX 6900 XT (512, 80, 2.25; beside
   128 MiB of cache), RX 7900 XTX (960, 96, 2.5). */
static const gpu_rates table[] = {
    {"polaris", 4, true, false, 128, 64, 36, 5.6}, {"vega", 4, true, false, 128, 64, 60, 12},
    {"navi1", 2, false, false, 128, 128, 40, 6.2}, {"navi2", 2, false, false, 128, 128, 80, 2.8},
    {"navi3", 2, false, true, 128, 128, 96, 4.0},
};

const gpu_rates *gpu_rates_find(const char *family) {
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strncmp(family, table[i].family, strlen(table[i].family)) == 0) return &table[i];
    return NULL;
}

static bool starts(const char *s, const char *with) { return strncmp(s, with, strlen(with)) == 0; }
static bool has(const char *s, const char *part) { return strstr(s, part) != NULL; }

/* Bytes per lane of a memory instruction, from its name. */
static double access_bytes(const char *op) {
    double n = has(op, "x4") || has(op, "b128")                      ? 16
               : has(op, "x3") || has(op, "b96")                     ? 12
               : has(op, "x2") || has(op, "b64")                     ? 8
               : has(op, "16") || has(op, "short")                   ? 2
               : has(op, "_u8") || has(op, "_i8") || has(op, "byte") ? 1
                                                                     : 4;
    return starts(op, "ds_read2") || starts(op, "ds_write2") || has(op, "_2addr") ? 2 * n : n;
}

/* FLOPs per lane; 0 for what is no multiply-add. A wave's matrix instruction is shared out among its lanes. */
static double op_flops(const char *op, int wave) {
    if (starts(op, "v_wmma")) return 16.0 * 16 * 16 * 2 / wave;
    if (has(op, "dot2") || starts(op, "v_pk_fma") || starts(op, "v_pk_mac")) return 4;
    return has(op, "_mix") || has(op, "fma") || has(op, "v_mac_f") || has(op, "v_mad_f") ? 2 : 0;
}

static bool is_transcendental(const char *op) {
    static const char *const names[] = {"v_exp", "v_log", "v_rcp", "v_rsq", "v_sqrt", "v_sin", "v_cos"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (starts(op, names[i])) return true;
    return false;
}

/* RDNA3 issues these for all 64 lanes at once. */
static bool is_single_pass(const char *op) {
    static const char *const names[] = {"v_add_f", "v_sub_f", "v_mul_f", "v_max_f", "v_min_f", "v_cndmask"};
    if (has(op, "mix") || starts(op, "v_pk")) return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (starts(op, names[i])) return true;
    return has(op, "fma") || has(op, "dot2") || has(op, "v_mov");
}

static double vector_clocks(const char *op, bool dual, const gpu_rates *rates, int wave) {
    bool slow = starts(op, "v_mul_lo_u32") || starts(op, "v_mul_hi") || starts(op, "v_mad_u64") || starts(op, "v_mad_co_u64");
    if (rates->gcn) {
        bool quarter = slow || is_transcendental(op) || (starts(op, "v_fma_f32") && starts(rates->family, "polaris"));
        return quarter ? 16 : 4;
    }
    if (starts(op, "v_wmma")) return 32;
    if (dual) return 1 / 0.75;
    double clocks = wave == 64 && !(rates->dual_issue && is_single_pass(op)) ? 2 : 1;
    return slow ? 4 * clocks : clocks;
}

void isa_classify(const char *line, const gpu_rates *rates, int wave, mix *m) {
    char op[64] = "", second[64] = "";
    if (sscanf(line, " %63s", op) != 1) return;
    const char *dual = strstr(line, "::");
    if (dual && sscanf(dual + 2, " %63s", second) != 1) dual = NULL;
    if (starts(op, "s_")) {
        if (!starts(op, "s_wait") && !starts(op, "s_delay") && !starts(op, "s_barrier")) m->scalar++;
    } else if (starts(op, "ds_")) {
        m->lds++;
        m->lds_bytes += access_bytes(op);
    } else if (starts(op, "buffer_") || starts(op, "global_") || starts(op, "flat_") || starts(op, "scratch_")) {
        m->memory++;
        m->memory_bytes += access_bytes(op);
    } else {
        double flops = op_flops(op, wave) + (dual ? op_flops(second, wave) : 0), clocks = vector_clocks(op, dual != NULL, rates, wave);
        m->vector++;
        m->valu += clocks;
        if (!rates->gcn && is_transcendental(op)) m->transcendental += 4 * clocks;
        if (flops > 0) {
            m->flops += flops;
            m->math += clocks;
        }
    }
}

isa isa_split(char *text, int wave) {
    size_t most = strlen(text) / 2 + 2;
    isa code = {.line = memory_new(most, sizeof(char *)), .bytes = memory_new(most, sizeof(int)), .wave = wave};
    char *rest = NULL;
    for (char *s = strtok_r(text, "\n", &rest); s; s = strtok_r(NULL, "\n", &rest)) {
        char *comment = strchr(s, ';');
        if (comment) { /* the encoding: 8 hex digits a word */
            *comment = 0;
            code.bytes[code.count] = 4 * (int)((strlen(comment + 1) + 1) / 9);
        }
        code.line[code.count++] = s;
    }
    return code;
}

void isa_free(isa *code) {
    free(code->line);
    free(code->bytes);
}

int isa_label(const char *line) {
    int n = -1, used = 0;
    return sscanf(line, "BB%d:%n", &n, &used) == 1 && used ? n : -1;
}

/* A branch back to a label closes a loop. Several branches to one label: the widest counts. */
static void close_loop(hot_loop *h, int first, int last) {
    for (int k = 0; k < h->count; k++)
        if (h->loops[k].first == first) {
            h->loops[k].last = last;
            return;
        }
    if (h->count < MOST_LOOPS) h->loops[h->count++] = (loop){.first = first, .last = last, .trips = 1};
}

static int length(const loop *l) { return l->last - l->first; }

/* The shortest loop around a stretch of lines, other than `self`; -1: none. */
static int loop_around(const hot_loop *h, int first, int last, int self) {
    int best = -1;
    for (int k = 0; k < h->count; k++)
        if (k != self && h->loops[k].first <= first && last <= h->loops[k].last &&
            (best < 0 || length(&h->loops[k]) < length(&h->loops[best])))
            best = k;
    return best;
}

static void find_loops(const isa *code, hot_loop *h) {
    enum { MOST_LABELS = 1 << 16 };
    int *at = memory_new(MOST_LABELS, sizeof *at); /* line + 1 of each label so far */
    for (int i = 0; i < code->count; i++) {
        int label = isa_label(code->line[i]), target;
        if (label >= 0 && label < MOST_LABELS) at[label] = i + 1;
        const char *b = strstr(code->line[i], "branch");
        if (b && (b = strstr(b, "BB")) && sscanf(b, "BB%d", &target) == 1 && target < MOST_LABELS && at[target])
            close_loop(h, at[target] - 1, i);
    }
    free(at);
    for (int k = 0; k < h->count; k++) h->loops[k].parent = loop_around(h, h->loops[k].first, h->loops[k].last, k);
}

static void mix_add(mix *to, const mix *m, double times) {
    double *x = (double *)to;
    const double *y = (const double *)m;
    for (size_t i = 0; i < sizeof *to / sizeof(double); i++) x[i] += times * y[i];
}

/* Its own instructions, and those of the loops inside it as often as they run. */
static void add_up(hot_loop *h, int k) {
    for (int c = 0; c < h->count; c++) {
        double trips = 1;
        int p = c;
        for (; p >= 0 && p != k; p = h->loops[p].parent) trips *= h->loops[p].trips;
        if (p == k) mix_add(&h->loops[k].total, &h->loops[c].own, trips);
    }
}

static bool is_innermost(const hot_loop *h, int k) {
    for (int c = 0; c < h->count; c++)
        if (h->loops[c].parent == k) return false;
    return true;
}

/* Of loops without FLOPs the one that moves most; -1: none moves anything. */
static int busiest_with_memory(const hot_loop *h) {
    int best = -1;
    for (int k = 0; k < h->count; k++) {
        double bytes = h->loops[k].own.memory_bytes;
        if (bytes > 0 && (best < 0 || bytes > h->loops[best].own.memory_bytes)) best = k;
    }
    return best;
}

/* The innermost loop with most FLOPs; a loop around others only where it has far more of its own. */
static int hottest(const hot_loop *h) {
    enum { FAR_MORE = 64 };
    int inner = -1, any = -1;
    for (int k = 0; k < h->count; k++) {
        double flops = h->loops[k].own.flops;
        if (flops > 0 && (any < 0 || flops > h->loops[any].own.flops)) any = k;
        if (flops > 0 && is_innermost(h, k) && (inner < 0 || flops > h->loops[inner].own.flops)) inner = k;
    }
    if (any < 0) return busiest_with_memory(h);
    return inner < 0 || h->loops[any].own.flops > FAR_MORE * h->loops[inner].own.flops ? any : inner;
}

void hot_loop_find(const isa *code, const gpu_rates *rates, const inner_loops *known, hot_loop *out) {
    memset(out, 0, sizeof *out);
    find_loops(code, out);
    for (int i = 0; i < code->count; i++) {
        if (isa_label(code->line[i]) >= 0) continue;
        int in = loop_around(out, i, i, -1);
        isa_classify(code->line[i], rates, code->wave, in < 0 ? &out->whole : &out->loops[in].own);
    }
    out->pick = hottest(out);
    for (int k = 0; known && k < out->count; k++) {
        loop *l = &out->loops[k];
        if (l->parent >= 0) l->trips = !is_innermost(out, k) ? known->between : l->own.flops > 0 ? known->multiply : known->fill;
    }
    while (known && out->pick >= 0 && out->loops[out->pick].parent >= 0) out->pick = out->loops[out->pick].parent;
    for (int k = 0; k < out->count; k++) add_up(out, k);
    out->total = out->pick < 0 ? out->whole : out->loops[out->pick].total;
    int first = out->pick < 0 ? 0 : out->loops[out->pick].first, last = out->pick < 0 ? code->count - 1 : out->loops[out->pick].last;
    for (int i = first; i <= last; i++) out->bytes += code->bytes[i];
}

int isa_least_access(const isa *code, const hot_loop *h) {
    const gpu_rates any = {.family = ""};
    int first = h->pick < 0 ? 0 : h->loops[h->pick].first, last = h->pick < 0 ? code->count - 1 : h->loops[h->pick].last, least = 0;
    for (int i = first; i <= last; i++) {
        mix m = {0};
        if (isa_label(code->line[i]) < 0) isa_classify(code->line[i], &any, code->wave, &m);
        if (m.memory > 0 && (!least || m.memory_bytes < least)) least = (int)m.memory_bytes;
    }
    return least;
}

hot_loop hot_loop_whole(const hot_loop *h, double steps, double after) {
    hot_loop w = *h;
    w.pick = -1;
    w.total = w.whole;
    for (int k = 0; k < w.count; k++) {
        if (w.loops[k].parent >= 0) continue;
        w.loops[k].trips = k == h->pick ? steps : h->pick >= 0 && w.loops[k].first > h->loops[h->pick].last ? after : 1;
        mix_add(&w.total, &w.loops[k].total, w.loops[k].trips);
    }
    return w;
}
