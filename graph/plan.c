#include "graph/plan.h"

#include "base/memory.h"
#include "graph/fuse.h"
#include "graph/narrow.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Everything starts at a multiple of this: a cache line, and at least any device's minStorageBufferOffsetAlignment. */
enum { ALIGNMENT = 256 };

/* A piece of the arena: one tensor, or several that take over each other's memory. */
typedef struct storage {
    size_t bytes, offset;
    int first, last;
} storage;

typedef struct layout {
    storage *items;
    int count;
    tensor **tensors; /* every temporary and input in use */
    int *item_of;     /* index into items */
    int tensor_count;
    tensor **constants; /* every constant in use */
    int constant_count;
    size_t bytes, block_bytes;
} layout;

typedef struct op_profile {
    const op *op;
    int records;
    double seconds, flops;
} op_profile;

struct shared_arena {
    device *device;
    size_t bytes, block_bytes;
    void *memory;        /* CPU */
    gpu_buffer **blocks; /* Vulkan: of block_bytes each, the last as small as will do */
    int block_count;
};

struct plan {
    tape *tape;
    device *device;
    size_t bytes;
    shared_arena *arena;
    bool shared; /* the arena is not this plan's own */
    gpu_recording *recording;
    op_profile profile[64];
    int profile_count;
};

/* ---- lifetimes ---- */

static bool planned(const tensor *x) { return x && (x->home == TENSOR_TEMPORARY || x->home == TENSOR_INPUT); }
static bool constant(const tensor *x) { return x && x->home == TENSOR_CONSTANT; }

static void add_tensor(tensor ***list, int *count, tensor *x) {
    *list = memory_grow(*list, (size_t)*count + 1, sizeof(tensor *));
    (*list)[(*count)++] = x;
}

static void touch(layout *l, tensor *x, int record_index, int length) {
    if (constant(x) && x->first == -1) {
        x->first = 0;
        add_tensor(&l->constants, &l->constant_count, x);
    }
    if (!planned(x)) return;
    if (x->first == -1) {
        x->first = x->home == TENSOR_INPUT ? 0 : record_index;
        x->block = -1;
        add_tensor(&l->tensors, &l->tensor_count, x);
    }
    x->last = x->home == TENSOR_INPUT || x->keep ? length : record_index;
}

static void find_lifetimes(layout *l, tape *t) {
    int length = tape_length(t);
    for (int i = 0; i < length; i++) {
        record *r = tape_record(t, i);
        for (int k = 0; k < RECORD_INPUTS; k++)
            if (planned(r->in[k]) || constant(r->in[k])) r->in[k]->first = -1;
        for (int k = 0; k < RECORD_OUTPUTS; k++)
            if (planned(r->out[k])) r->out[k]->first = -1;
        size_t scratch = r->op->scratch ? r->op->scratch(r, tape_device(t)) : 0;
        if (scratch && !r->scratch) r->scratch = tape_temporary(t, DTYPE_F32, 1, (int64_t[]){(int64_t)((scratch + 3) / 4)});
        if (r->scratch) r->scratch->first = -1;
    }
    for (int i = 0; i < length; i++) {
        record *r = tape_record(t, i);
        for (int k = 0; k < RECORD_INPUTS; k++) touch(l, r->in[k], i, length);
        for (int k = 0; k < RECORD_OUTPUTS; k++) touch(l, r->out[k], i, length);
        touch(l, r->scratch, i, length);
    }
}

/* May out[0] of record i take over the memory of its in_place input? */
static tensor *taken_over(const record *r, int i) {
    if (r->op->in_place < 0) return NULL;
    tensor *x = r->in[r->op->in_place], *y = r->out[0];
    if (!x || x->home != TENSOR_TEMPORARY || x->keep || x->last != i || x->bytes != y->bytes || y->home != TENSOR_TEMPORARY) return NULL;
    for (int k = 0; k < RECORD_INPUTS; k++)
        if (k != r->op->in_place && r->in[k] == x) return NULL;
    return x;
}

/* Tensors become storages; `block` holds a tensor's storage index meanwhile. In the order of first use, so that a taken-over tensor's
 * storage exists before its successor asks for it. */
static void assign_storages(layout *l, const tape *t) {
    l->items = memory_new((size_t)l->tensor_count + 1, sizeof *l->items);
    int length = tape_length(t);
    for (int i = 0; i < length; i++) {
        const record *r = tape_record(t, i);
        tensor *x = taken_over(r, i);
        if (x && x->block >= 0) {
            storage *s = &l->items[x->block];
            r->out[0]->block = x->block;
            if (r->out[0]->last > s->last) s->last = r->out[0]->last;
        }
        tensor *all[RECORD_INPUTS + RECORD_OUTPUTS + 1];
        int n = 0;
        for (int k = 0; k < RECORD_INPUTS; k++) all[n++] = r->in[k];
        for (int k = 0; k < RECORD_OUTPUTS; k++) all[n++] = r->out[k];
        all[n++] = r->scratch;
        for (int k = 0; k < n; k++) {
            if (!planned(all[k]) || all[k]->block >= 0) continue;
            all[k]->block = l->count;
            l->items[l->count++] = (storage){(all[k]->bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, 0, all[k]->first, all[k]->last};
        }
    }
    l->item_of = memory_new((size_t)l->tensor_count + 1, sizeof *l->item_of);
    for (int i = 0; i < l->tensor_count; i++) l->item_of[i] = l->tensors[i]->block;
}

/* ---- placement: largest first, at the lowest offset that is free during its whole life ---- */

static int by_size(const void *a, const void *b) {
    const storage *x = *(storage *const *)a, *y = *(storage *const *)b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return x->first != y->first ? (x->first > y->first) - (x->first < y->first) : (x > y) - (x < y);
}

static int by_offset(const void *a, const void *b) {
    const storage *x = *(storage *const *)a, *y = *(storage *const *)b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

static void place(layout *l) {
    storage **order = memory_new((size_t)l->count + 1, sizeof *order), **busy = memory_new((size_t)l->count + 1, sizeof *busy);
    for (int i = 0; i < l->count; i++) order[i] = &l->items[i];
    qsort(order, (size_t)l->count, sizeof *order, by_size);
    for (int i = 0; i < l->count; i++) {
        storage *s = order[i];
        int n = 0;
        for (int k = 0; k < i; k++)
            if (order[k]->first <= s->last && s->first <= order[k]->last) busy[n++] = order[k];
        qsort(busy, (size_t)n, sizeof *busy, by_offset);
        size_t at = 0;
        for (int k = 0; k <= n; k++) {
            size_t in_block = at % l->block_bytes;
            if (in_block && in_block + s->bytes > l->block_bytes) at += l->block_bytes - in_block;
            if (k == n || at + s->bytes <= busy[k]->offset) break;
            if (busy[k]->offset + busy[k]->bytes > at) at = busy[k]->offset + busy[k]->bytes;
        }
        s->offset = at;
        if (at + s->bytes > l->bytes) l->bytes = at + s->bytes;
    }
    free(order);
    free(busy);
}

static void layout_free(layout *l) {
    free(l->items);
    free(l->tensors);
    free(l->item_of);
    free(l->constants);
}

/* How much of the arena may lie in one piece. */
static size_t block_limit(const device *d) {
    return d->gpu ? gpu_get_limits(d->gpu)->allocation_bytes / ALIGNMENT * ALIGNMENT : (size_t)1 << 62;
}

static bool layout_make(layout *l, tape *t, error *err) {
    device *d = tape_device(t);
    *l = (layout){.block_bytes = block_limit(d)};
    if (tape_error(t)) return error_set(err, "%s", tape_error(t));
    size_t range = d->gpu ? gpu_get_limits(d->gpu)->range_bytes : l->block_bytes;
    if (l->block_bytes < range) range = l->block_bytes;
    tape_fuse(t);
    tape_narrow(t);
    find_lifetimes(l, t);
    for (int i = 0; i < l->tensor_count; i++) {
        char shape[64];
        if (l->tensors[i]->bytes > range)
            return error_set(
                err,
                "%s: a tensor of shape %s takes %.1f MiB, more than the %.1f MiB this device can address at once; use a smaller "
                "size, --precision fp16 or --device cpu",
                d->name, tensor_shape_text(l->tensors[i], shape), (double)l->tensors[i]->bytes / (1 << 20), (double)range / (1 << 20));
    }
    assign_storages(l, t);
    place(l);
    return true;
}

/* The most that storages take together while one record runs. */
static size_t live_peak(const layout *l, int length) {
    size_t *change = memory_new((size_t)length + 2, sizeof *change), now = 0, most = 0;
    for (int i = 0; i < l->count; i++) {
        change[l->items[i].first] += l->items[i].bytes;
        change[l->items[i].last + 1] -= l->items[i].bytes; /* modulo 2^64: sums come out right */
    }
    for (int i = 0; i <= length; i++) {
        now += change[i];
        if (now > most) most = now;
    }
    free(change);
    return most;
}

bool plan_measure(tape *t, plan_size *size, error *err) {
    layout l;
    bool ok = layout_make(&l, t, err);
    *size = (plan_size){.arena = l.bytes, .live = ok ? live_peak(&l, tape_length(t)) : 0};
    for (int i = 0; i < l.constant_count; i++) {
        size->constants += l.constants[i]->bytes;
        if (!tensor_is_loaded(l.constants[i])) size->missing += l.constants[i]->bytes;
    }
    layout_free(&l);
    return ok;
}

/* ---- the plan ---- */

static bool allocate_blocks(shared_arena *a, error *err) {
    a->block_count = (int)((a->bytes + a->block_bytes - 1) / a->block_bytes);
    a->blocks = memory_new((size_t)a->block_count + 1, sizeof *a->blocks);
    for (int b = 0; b < a->block_count; b++) {
        size_t rest = a->bytes - (size_t)b * a->block_bytes;
        a->blocks[b] = gpu_buffer_create(a->device->gpu, rest < a->block_bytes ? rest : a->block_bytes, err);
        if (!a->blocks[b])
            return error_prefix(err, "%s: this run needs %zu MiB of device memory; use a smaller size or batch", a->device->name,
                                a->bytes >> 20);
    }
    return true;
}

static void release_blocks(shared_arena *a) {
    for (int b = 0; b < a->block_count; b++)
        if (a->blocks[b]) gpu_buffer_free(a->blocks[b]);
    free(a->blocks);
    free(a->memory);
    free(a);
}

/* The first touch of a page costs more than clearing it: all threads do it. */
static void clear(char *memory, size_t bytes) {
    const size_t piece = (size_t)4 << 20;
#pragma omp parallel for schedule(static)
    for (size_t at = 0; at < bytes; at += piece) memset(memory + at, 0, bytes - at < piece ? bytes - at : piece);
}

shared_arena *arena_create(device *d, size_t bytes, error *err) {
    shared_arena *a = memory_new(1, sizeof *a);
    a->device = d;
    a->bytes = bytes;
    a->block_bytes = block_limit(d);
    bool ok;
    if (d->gpu) {
        ok = allocate_blocks(a, err);
    } else {
        a->memory = memory_try_aligned(bytes);
        ok = a->memory || error_set(err, "not enough memory: this run needs %zu MiB; use a smaller size or batch", bytes >> 20);
        if (ok) clear(a->memory, bytes);
    }
    if (!ok) {
        release_blocks(a);
        return NULL;
    }
    d->live_bytes += bytes;
    if (d->live_bytes > d->peak_bytes) d->peak_bytes = d->live_bytes;
    return a;
}

void arena_free(shared_arena *a) {
    if (!a) return;
    a->device->live_bytes -= a->bytes;
    release_blocks(a);
}

size_t arena_bytes(const shared_arena *a) { return a->bytes; }

static void set_addresses(plan *p, const layout *l) {
    const shared_arena *a = p->arena;
    for (int i = 0; i < l->tensor_count; i++) {
        tensor *x = l->tensors[i];
        x->offset = l->items[l->item_of[i]].offset;
        x->block = 0;
        if (!p->device->gpu) {
            x->cpu = (char *)a->memory + x->offset;
        } else {
            x->block = (int)(x->offset / a->block_bytes);
            x->gpu = (gpu_range){a->blocks[x->block], x->offset % a->block_bytes, x->bytes};
        }
    }
}

static bool record_all(plan *p, error *err) {
    p->recording = gpu_recording_begin(p->device->gpu);
    for (int i = 0; i < tape_length(p->tape); i++) {
        const record *r = tape_record(p->tape, i);
        r->op->run_vulkan(r, p->recording);
    }
    return gpu_recording_end(p->recording, err);
}

static bool take_arena(plan *p, shared_arena *shared, error *err) {
    p->shared = shared != NULL;
    p->arena = shared ? shared : arena_create(p->device, p->bytes, err);
    if (!p->arena) return false;
    return p->bytes <= p->arena->bytes ||
           error_set(err, "this run needs %zu MiB of memory, %zu MiB were set aside", p->bytes >> 20, p->arena->bytes >> 20);
}

plan *plan_create_in(tape *t, shared_arena *shared, error *err) {
    plan *p = memory_new(1, sizeof *p);
    p->tape = t;
    p->device = tape_device(t);
    layout l;
    bool ok = layout_make(&l, t, err);
    p->bytes = l.bytes;
    if (ok) tape_pack(t);
    ok = ok && tensor_load_constants(l.constants, l.constant_count, err) && take_arena(p, shared, err);
    if (ok) set_addresses(p, &l);
    layout_free(&l);
    if (ok && p->device->gpu) ok = record_all(p, err);
    if (ok) return p;
    plan_free(p);
    return NULL;
}

plan *plan_create(tape *t, error *err) { return plan_create_in(t, NULL, err); }

void plan_free(plan *p) {
    if (!p) return;
    if (p->recording) gpu_recording_free(p->recording);
    if (!p->shared) arena_free(p->arena);
    tape_free(p->tape);
    free(p);
}

size_t plan_arena_bytes(const plan *p) { return p->bytes; }

static double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static op_profile *profile_of(plan *p, const op *operation) {
    const int most = (int)(sizeof p->profile / sizeof *p->profile);
    for (int i = 0; i < p->profile_count; i++)
        if (p->profile[i].op == operation) return &p->profile[i];
    if (p->profile_count == most) return &p->profile[most - 1];
    p->profile[p->profile_count].op = operation;
    return &p->profile[p->profile_count++];
}

bool plan_run(plan *p, error *err) {
    if (p->device->gpu) return gpu_run(p->recording, err);
    double start = now_seconds();
    for (int i = 0; i < tape_length(p->tape); i++) {
        const record *r = tape_record(p->tape, i);
        r->op->run_cpu(r, p->device);
        double end = now_seconds();
        op_profile *o = profile_of(p, r->op);
        o->records++;
        o->seconds += end - start;
        if (r->op->flops) o->flops += r->op->flops(r);
        start = end;
    }
    return true;
}

void plan_count(const plan *p, gpu_counts *sum) {
    if (!p->recording) return;
    gpu_counts own = gpu_recording_count(p->recording);
    sum->dispatches += own.dispatches;
    sum->barriers += own.barriers;
    sum->submissions += own.submissions;
    if (own.longest_s > sum->longest_s) sum->longest_s = own.longest_s;
}

void plan_profile(const plan *p, void (*report)(void *user, const char *op, int records, double seconds, double flops), void *user) {
    for (int i = 0; i < p->profile_count; i++) {
        const op_profile *o = &p->profile[i];
        report(user, o->op->name, o->records, o->seconds, o->flops);
    }
}
