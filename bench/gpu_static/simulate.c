/* One compute unit and its waves: sees what bounds cannot, namely barriers, s_waitcnt, the order of instructions, latencies against
   occupancy. gpu_static.h describes the model. */
#include "bench/gpu_static/gpu_static.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum unit { UNIT_NONE, UNIT_VALU, UNIT_LDS, UNIT_MEMORY, UNIT_SCALAR, UNIT_WAIT, UNIT_BARRIER, UNITS } unit;
enum { VALU_LATENCY = 5, LDS_LATENCY = 64, SCALAR_LOAD_LATENCY = 60, MEMORY_LATENCY = 500, BRANCH_CLOCKS = 8 };
enum { LDS_QUEUE = 32, MEMORY_QUEUE = 64, GROUP_LAUNCH = 397 /* clocks between workgroups */ };
enum { MOST_SOURCES = 28, MOST_WAVES = 64, HISTORY = 64, REGISTERS = 256, MOST_STEPS = 200000 };
enum { WARM_PASSES = 4, PASSES = 16 };

/* One instruction. vm, lgkm: what s_waitcnt waits for, -1: not. */
typedef struct step {
    unit unit;
    int vm, lgkm;
    int target, target_count, source[MOST_SOURCES], source_count;
    double clocks, bytes, flops, latency;
    bool load, scalar_load;
} step;

static bool starts(const char *s, const char *with) { return strncmp(s, with, strlen(with)) == 0; }

static bool begins_operand(const char *text, const char *c) { return *c == 'v' && (c == text || strchr(" \t,-|", c[-1]) != NULL); }

/* The vector registers of one instruction (or half of a dual one); the first one is written, unless it is a store. */
static void add_registers(step *s, const char *text, bool writes, bool accumulates) {
    int n = 0;
    for (const char *c = text; *c && !starts(c, "::"); c++) {
        int first, last;
        if (!begins_operand(text, c)) continue;
        if (sscanf(c, "v[%d:%d]", &first, &last) != 2) {
            if (sscanf(c, "v%d", &first) != 1) continue;
            last = first;
        }
        bool target = writes && n++ == 0;
        if (target && (s->target_count == 0 || first == s->target + s->target_count)) {
            if (s->target_count == 0) s->target = first;
            s->target_count += last - first + 1;
        }
        for (int r = first; r <= last && (!target || accumulates) && s->source_count < MOST_SOURCES; r++) s->source[s->source_count++] = r;
    }
}

static const char *operands(const char *line) {
    line += strspn(line, " \t");
    return line + strcspn(line, " \t");
}

static int counter(const char *line, const char *name) {
    const char *c = strstr(line, name);
    return c ? atoi(c + strlen(name)) : -1;
}

static step step_decode(const char *line, const gpu_rates *rates, int wave) {
    step s = {.vm = -1, .lgkm = -1, .latency = VALU_LATENCY};
    char name[64] = "";
    if (sscanf(line, " %63s", name) != 1 || starts(name, "s_delay") || starts(name, "s_nop") || starts(name, "s_clause")) return s;
    if (starts(name, "s_wait")) {
        s.unit = UNIT_WAIT;
        s.vm = counter(line, "vmcnt(");
        s.lgkm = counter(line, "lgkmcnt(");
        return s;
    }
    if (starts(name, "s_barrier")) {
        s.unit = UNIT_BARRIER;
        return s;
    }
    if (starts(name, "s_")) {
        s.unit = UNIT_SCALAR;
        s.scalar_load = starts(name, "s_load") || starts(name, "s_buffer_load");
        s.clocks = strstr(name, "branch") ? BRANCH_CLOCKS : 1;
        return s;
    }
    mix m = {0};
    isa_classify(line, rates, wave, &m);
    s.load = strstr(name, "load") || strstr(name, "read") || strstr(name, "permute") || strstr(name, "swizzle");
    s.unit = m.lds > 0 ? UNIT_LDS : m.memory > 0 ? UNIT_MEMORY : UNIT_VALU;
    s.bytes = m.lds_bytes + m.memory_bytes;
    s.clocks = m.valu;
    s.flops = m.flops;
    if (s.unit == UNIT_MEMORY) s.latency = MEMORY_LATENCY;
    if (s.unit == UNIT_VALU) s.latency = rates->gcn ? 0 : VALU_LATENCY + (m.transcendental > 0 ? 5 : 0);
    bool accumulates = strstr(name, "fmac") || strstr(name, "v_mac") || strstr(name, "dot2c") || strstr(name, "dot2acc");
    add_registers(&s, operands(line), s.unit == UNIT_VALU || s.load, accumulates);
    const char *dual = strstr(line, "::");
    if (dual) add_registers(&s, operands(dual + 2), true, accumulates);
    return s;
}

/* One pass of a loop as a flat list; loops inside it as often as they run. Branches forward are not taken. */
static int list_steps(const isa *code, const hot_loop *h, int k, const gpu_rates *rates, step *out, int room) {
    int n = 0, first = k < 0 ? 0 : h->loops[k].first, last = k < 0 ? code->count - 1 : h->loops[k].last;
    for (int i = first; i <= last && n < room; i++) {
        if (isa_label(code->line[i]) >= 0) {
            for (int c = 0; c < h->count; c++) {
                if (c == k || h->loops[c].first != i || h->loops[c].parent != k) continue;
                for (int r = 0; r < (int)h->loops[c].trips; r++) n += list_steps(code, h, c, rates, out + n, room - n);
                i = h->loops[c].last;
                break;
            }
        } else if (i == last || !strstr(code->line[i], "branch")) {
            out[n++] = step_decode(code->line[i], rates, code->wave);
        }
    }
    return n;
}

typedef struct wave {
    int at, group, simd, vm_count, lgkm_count;
    double ready, reg[REGISTERS], vm[HISTORY], lgkm[HISTORY];
    bool at_barrier;
} wave;

typedef struct machine {
    const step *steps;
    int step_count, lanes, total, group;
    const gpu_rates *rates;
    wave *waves;
    int arrived[MOST_WAVES];
    double now, tick, valu_free[4], lds_free, memory_free;
    long done;
} machine;

static bool counted(const double *when, int count, int allowed, double now) {
    return allowed < 0 || count <= allowed || when[(count - allowed - 1) % HISTORY] <= now;
}

static bool wave_ready(const wave *w, const step *s, double now) {
    if (now < w->ready || w->at_barrier || !counted(w->vm, w->vm_count, s->vm, now) || !counted(w->lgkm, w->lgkm_count, s->lgkm, now))
        return false;
    for (int i = 0; i < s->source_count; i++)
        if (w->reg[s->source[i] % REGISTERS] > now) return false;
    return true;
}

static void advance(machine *m, wave *w) {
    if (++w->at == m->step_count) {
        w->at = 0;
        m->done++;
    }
}

static double later(double a, double b) { return a > b ? a : b; }

static void meet(machine *m, wave *w) {
    w->at_barrier = true;
    if (++m->arrived[w->group] < m->group) return;
    m->arrived[w->group] = 0;
    for (int k = 0; k < m->total; k++)
        if (m->waves[k].group == w->group) {
            m->waves[k].at_barrier = false;
            m->waves[k].ready = m->now + 4;
        }
}

/* False: the unit's queue is full. */
static bool issue(machine *m, wave *w, const step *s) {
    switch (s->unit) {
    case UNIT_VALU:
        if (m->valu_free[w->simd] >= m->now + m->tick) return false; /* clocks may be fractions */
        m->valu_free[w->simd] = later(m->valu_free[w->simd], m->now) + s->clocks;
        for (int r = 0; r < s->target_count; r++) w->reg[(s->target + r) % REGISTERS] = m->now + s->clocks - 1 + s->latency;
        return true;
    case UNIT_LDS:
        if (m->lds_free > m->now + LDS_QUEUE) return false;
        m->lds_free = later(m->lds_free, m->now) + s->bytes * m->lanes / m->rates->lds_bytes;
        w->lgkm[w->lgkm_count++ % HISTORY] = m->lds_free + LDS_LATENCY;
        return true;
    case UNIT_MEMORY:
        if (m->memory_free > m->now + MEMORY_QUEUE) return false;
        m->memory_free = later(m->memory_free, m->now) + s->bytes * m->lanes / m->rates->l1_bytes;
        if (s->load || m->rates->gcn) w->vm[w->vm_count++ % HISTORY] = m->memory_free + s->latency;
        return true;
    case UNIT_BARRIER: meet(m, w); return true;
    default:
        if (s->scalar_load) w->lgkm[w->lgkm_count++ % HISTORY] = m->now + SCALAR_LOAD_LATENCY;
        return true;
    }
}

/* One clock of one SIMD. */
static void simd_clock(machine *m, int simd) {
    bool used[UNITS] = {false};
    for (int i = 0; i < m->total; i++) {
        wave *w = &m->waves[i];
        if (w->simd != simd) continue;
        const step *s = &m->steps[w->at];
        while (s->unit == UNIT_NONE || (s->unit == UNIT_WAIT && wave_ready(w, s, m->now))) { /* these cost nothing */
            advance(m, w);
            s = &m->steps[w->at];
        }
        if (used[s->unit] || !wave_ready(w, s, m->now) || !issue(m, w, s)) continue;
        used[s->unit] = true;
        w->ready = later(w->ready, m->now + (s->unit == UNIT_SCALAR ? s->clocks * m->tick : m->tick));
        advance(m, w);
    }
}

static int waves_in_all(int waves, int group, const gpu_rates *rates) {
    int total = waves * rates->simds;
    if (group > total) total = group; /* a workgroup always fits somewhere */
    total -= total % group;
    return total > MOST_WAVES ? MOST_WAVES - MOST_WAVES % group : total;
}

static double run(const step *steps, int count, const gpu_rates *rates, int lanes, int waves, int group) {
    machine m = {.steps = steps, .step_count = count, .lanes = lanes, .group = group, .rates = rates, .tick = rates->gcn ? 4 : 1};
    m.total = waves_in_all(waves, group, rates);
    m.waves = memory_new((size_t)m.total, sizeof *m.waves);
    for (int i = 0; i < m.total; i++) {
        m.waves[i].group = i / group, m.waves[i].simd = i % rates->simds;
        m.waves[i].ready = GROUP_LAUNCH * (double)(i / group);
    }
    const long warm = (long)WARM_PASSES * m.total, goal = (long)PASSES * m.total;
    double begin = 0;
    for (; m.done < goal && m.now < 5e7; m.now += m.tick) {
        if (m.done < warm) begin = m.now;
        for (int s = 0; s < rates->simds; s++) simd_clock(&m, s);
    }
    double flops = 0;
    for (int i = 0; i < count; i++) flops += steps[i].flops;
    double result = m.now > begin ? (double)(goal - warm) * flops * lanes / (m.now - begin) : 0;
    free(m.waves);
    return result;
}

/* What each unit alone would allow. */
static double bound(const mix *t, const gpu_rates *rates, int lanes) {
    double valu = later(t->valu, t->transcendental), best = t->flops * lanes * rates->simds / valu;
    double lds = t->lds_bytes * lanes / rates->lds_bytes * rates->simds, memory = t->memory_bytes * lanes / rates->l1_bytes * rates->simds;
    double slowest = later(lds, memory);
    return slowest > valu ? best * valu / slowest : best;
}

double simulate(const isa *code, const hot_loop *hot, const gpu_rates *rates, int waves, int group) {
    if (hot->total.flops <= 0) return 0;
    step *steps = memory_new(MOST_STEPS, sizeof *steps);
    int count = list_steps(code, hot, hot->pick, rates, steps, MOST_STEPS);
    bool works = false; /* something that takes time, or the clock would never move on */
    for (int i = 0; i < count && !works; i++) works = steps[i].unit != UNIT_NONE && steps[i].unit != UNIT_WAIT;
    double sim = works ? run(steps, count, rates, code->wave, waves < 1 ? 1 : waves, group) : 0,
           most = bound(&hot->total, rates, code->wave);
    free(steps);
    return sim < most ? sim : most; /* a few per cent of counting noise */
}
