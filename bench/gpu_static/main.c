/* gpu_static FAMILY [TEXT]: one table row for each kernel that SD1.5 launches on that card (only cases or kernels with TEXT in their name),
   as run.sh sets the driver up. With -d the instructions too. Exit status 1: something is below its target, or spills. */
#include "bench/gpu_static/gpu_static.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct report {
    null_device *device;
    const char *family, *only;
    const gpu_rates *rates;
    bool dump;
    int failed;
} report;

static void print_header(void) {
    printf("%-9s %-36s %-34s %4s %4s %5s %6s %6s %6s %6s %7s %7s %7s %6s %6s %6s %6s %4s\n", "GPU", "case", "kernel", "wave", "VGPR",
           "waves", "spills", "LDS", "loop B", "useful", "instr/B", "sim", "target", "groups", "card", "memory", "access", "alu");
}

/* FLOP per clock and CU of a whole launch on the whole card: of the kernel from end to end, with the workgroups that a unit gets. */
enum { FEW_STEPS = 4 }; /* simulated from end to end; the others are added */

static double card_rate(const report *r, const case_kernel *k, const compiled *c, const isa *code, const hot_loop *h) {
    const int units = r->rates->units;
    if (k->steps <= 0 || h->total.flops <= 0) return 0;
    int most = (int)ceil(k->groups / units), waves = (most * c->group + r->rates->simds - 1) / r->rates->simds;
    if (waves > c->waves) waves = c->waves;
    static hot_loop whole;
    double some = k->steps < FEW_STEPS ? k->steps : FEW_STEPS, step = h->total.flops;
    whole = hot_loop_whole(h, some, k->after);
    double clocks = whole.total.flops / simulate(code, &whole, r->rates, waves, c->group);
    if (k->steps > some) clocks += (k->steps - some) * step / simulate(code, h, r->rates, waves, c->group);
    return k->steps * step / clocks * k->groups / units / most;
}

/* One row. sim: FLOP per clock and CU; instr/B: vector and scalar instructions per byte moved, of the loop or, without one, the kernel.
   card: the launch on the whole card; memory: what the card's memory allows. access, alu: of kernels that memory bounds, see
   stream_verdict. */
static void print_row(const report *r, const case_kernel *k, const compiled *c, const hot_loop *h, double sim, double card,
                      const stream_verdict *s) {
    char target[32] = "", rate[32] = "", useful[32] = "", moved[32] = "", launch[32] = "", memory[32] = "", access[32] = "", alu[32] = "";
    if (card > 0) snprintf(launch, sizeof launch, "%.0f", card);
    if (k->flops > 0) snprintf(memory, sizeof memory, "%.0f", k->flops / k->bytes * r->rates->memory_bytes);
    if (k->target > 0) snprintf(target, sizeof target, "%.0f%s", k->target, sim < k->target ? " !" : "");
    if (sim > 0) snprintf(rate, sizeof rate, "%.0f", sim);
    if (h->total.flops > 0) snprintf(useful, sizeof useful, "%.0f%%", 100 * h->total.math / h->total.valu);
    if (h->total.memory_bytes > 0) snprintf(moved, sizeof moved, "%.1f", (h->total.vector + h->total.scalar) / h->total.memory_bytes);
    if (s) {
        snprintf(access, sizeof access, "%d%s", s->access, s->narrow ? " !" : "");
        snprintf(alu, sizeof alu, "%.0f%%", 100 * s->alu);
        snprintf(target, sizeof target, "%s%s", s->slow ? "instr! " : "", s->few_waves ? "waves!" : "");
    }
    printf("%-9s %-36s %-34s %4d %4d %5d %6d %6d %6d %6s %7s %7s %7s %6.0f %6s %6s %6s %4s\n", r->family, k->label, k->pipeline->shader,
           c->wave, c->registers, c->waves, c->spills, c->shared, h->bytes, useful, moved, rate, target, k->groups, launch, memory, access,
           alu);
    fflush(stdout);
}

static void visit(void *user, const case_kernel *k) {
    report *r = user;
    if (r->only && !strstr(k->label, r->only) && !strstr(k->pipeline->shader, r->only)) return;
    compiled c;
    if (!null_device_compile(r->device, k->pipeline, gpu_shader_find(k->pipeline->shader), &c)) {
        printf("%-9s %-36s %-34s does not compile\n", r->family, k->label, k->pipeline->shader);
        r->failed++;
        return;
    }
    if (!c.text) return;
    if (r->dump) puts(c.text);
    if (!r->rates->gcn && c.wave == 64) c.waves /= 2; /* the driver counts a wave of 64 twice */
    static hot_loop hot;
    isa code = isa_split(c.text, c.wave);
    hot_loop_find(&code, r->rates, k->has_trips ? &k->trips : NULL, &hot);
    double sim = simulate(&code, &hot, r->rates, c.waves, c.group) * k->useful;
    stream_verdict s;
    bool stream = stream_judge(k->pipeline->shader, r->rates, &code, &hot, c.waves, &s);
    print_row(r, k, &c, &hot, sim, card_rate(r, k, &c, &code, &hot), stream ? &s : NULL);
    r->failed += c.spills > 0 || sim < k->target || (stream && (s.slow || s.narrow || s.few_waves));
    isa_free(&code);
    free(c.text);
}

int main(int argc, char **argv) {
    report r = {.dump = argc > 1 && strcmp(argv[1], "-d") == 0};
    int at = r.dump ? 2 : 1;
    r.family = argc > at ? argv[at] : "";
    r.only = argc > at + 1 ? argv[at + 1] : NULL;
    r.rates = gpu_rates_find(r.family);
    if (!r.rates || !(r.device = null_device_open())) {
        fprintf(stderr, "gpu_static: %s; see run.sh\n", r.rates ? "no driver with a null device" : "which family?");
        return 2;
    }
    null_device_engine(r.device)->info.units = r.rates->units;
    print_header();
    error err;
    bool ok = cases_run(null_device_engine(r.device), r.family, visit, &r, &err);
    if (!ok) fprintf(stderr, "gpu_static: %s\n", err.text);
    null_device_close(r.device);
    return ok ? r.failed > 0 : 2;
}
