/* Which dispatches go to the device together. Display drivers reset a device whose submission runs for two seconds (Windows; others allow
   more), and a desktop stands still meanwhile: no piece should take half a second, on the slowest device that can be used. What the device
   really needs is measured while it works, and pieces are cut anew when that is far from the estimate. */
#include "vulkan/recording.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

/* How often a schedule is made anew because pieces were too short, and at all: times wander, and some launches cannot be cut. */
enum { MOST_MERGES = 3, MOST_ADJUSTMENTS = 20 };

/* A measured piece may be so much longer than wanted before it is cut: twice that is the limit. */
static const double SLACK = 1.5;

double launch_estimate(const gpu *g, const gpu_dispatch *d, double flops) {
    double bytes = 0;
    for (int i = 0; i < d->range_count; i++) {
        bool again = false; /* what a kernel does not use is bound to something else once more */
        for (int k = 0; k < i; k++)
            again = again || (d->ranges[k].buffer == d->ranges[i].buffer && d->ranges[k].offset == d->ranges[i].offset);
        if (!again) bytes += (double)d->ranges[i].size;
    }
    return g->pace.flops > 0 ? flops / g->pace.flops + bytes / g->pace.bytes : 0;
}

/* ---- barriers ---- */

typedef struct open_accesses {
    access *list;
    int count, capacity;
} open_accesses;

static bool overlap(const gpu_range *a, const gpu_range *b) {
    return a->buffer == b->buffer && a->offset < b->offset + b->size && b->offset < a->offset + a->size;
}

/* Whether the launch must wait: it reads what was written, or writes what was read or written, since the last barrier. */
static bool must_wait(const open_accesses *open, const launch *l) {
    for (int i = 0; i < open->count; i++)
        for (int j = 0; j < l->range_count; j++)
            if ((open->list[i].write || (l->written >> j & 1)) && overlap(&open->list[i].range, &l->ranges[j])) return true;
    return false;
}

static void note_accesses(open_accesses *open, const launch *l) {
    for (int j = 0; j < l->range_count; j++) {
        if (open->count == open->capacity) {
            open->capacity = open->capacity ? 2 * open->capacity : 64;
            open->list = memory_grow(open->list, (size_t)open->capacity, sizeof *open->list);
        }
        open->list[open->count++] = (access){l->ranges[j], l->written >> j & 1};
    }
}

/* ---- parts ---- */

static uint32_t divided(uint32_t value, uint32_t by) { return (value + by - 1) / by; }

/* Into how many parts an axis of `groups` workgroups is cut when *wanted are asked for; what is left to other axes stays in *wanted. */
static uint32_t take_axis(uint32_t groups, uint32_t *wanted) {
    uint32_t step = divided(groups, *wanted < groups ? *wanted : groups), parts = divided(groups, step);
    *wanted = divided(*wanted, parts);
    return step;
}

/* Workgroups per part along each axis. A kernel that asks for the number of workgroups reckons with whole rows of them. */
static void part_size(const launch *l, double most, uint32_t step[3]) {
    const double parts = most > 0 ? l->seconds / most : 0;
    uint32_t wanted = parts > 65536 ? 65536 : parts > 1 ? (uint32_t)parts + 1 : 1;
    step[2] = take_axis(l->groups[2], &wanted);
    step[1] = take_axis(l->groups[1], &wanted);
    step[0] = l->pipeline->whole_rows ? l->groups[0] : take_axis(l->groups[0], &wanted);
}

static launch_part *part_add(gpu_recording *rec) {
    if (rec->part_count == rec->part_capacity) {
        rec->part_capacity = rec->part_capacity ? 2 * rec->part_capacity : 64;
        rec->parts = memory_grow(rec->parts, (size_t)rec->part_capacity, sizeof *rec->parts);
    }
    return &rec->parts[rec->part_count++];
}

static void cut_launch(gpu_recording *rec, int index, double most) {
    const launch *l = &rec->launches[index];
    const double all = (double)l->groups[0] * l->groups[1] * l->groups[2];
    uint32_t step[3], at[3];
    part_size(l, most, step);
    for (at[2] = 0; at[2] < l->groups[2]; at[2] += step[2])
        for (at[1] = 0; at[1] < l->groups[1]; at[1] += step[1])
            for (at[0] = 0; at[0] < l->groups[0]; at[0] += step[0]) {
                launch_part p = {.launch = index};
                double share = 1;
                for (int a = 0; a < 3; a++) {
                    p.base[a] = at[a];
                    p.groups[a] = l->groups[a] - at[a] < step[a] ? l->groups[a] - at[a] : step[a];
                    share *= p.groups[a];
                }
                p.seconds = l->seconds * share / all;
                *part_add(rec) = p;
            }
}

/* ---- pieces ---- */

static void note_piece(gpu_recording *rec) {
    rec->piece_seconds = memory_grow(rec->piece_seconds, (size_t)rec->pieces + 1, sizeof *rec->piece_seconds);
    rec->piece_seconds[rec->pieces++] = 0;
}

void schedule_make(gpu_recording *rec) {
    const double most = rec->gpu->pace.piece_s;
    open_accesses open = {.list = NULL};
    schedule_free(rec);
    for (int i = 0; i < rec->count; i++) {
        const launch *l = &rec->launches[i];
        int first = rec->part_count;
        cut_launch(rec, i, most);
        for (int k = first; k < rec->part_count; k++) {
            launch_part *p = &rec->parts[k];
            double so_far = rec->pieces ? rec->piece_seconds[rec->pieces - 1] : 0;
            p->starts_piece = k == 0 || (most > 0 && so_far > 0 && so_far + p->seconds > most);
            p->barrier = k == first && !p->starts_piece && must_wait(&open, l); /* parts of one launch never wait for each other */
            if (p->starts_piece) note_piece(rec);
            if (p->starts_piece || p->barrier) open.count = 0; /* every piece begins with a barrier of its own */
            if (p->starts_piece || k == first) note_accesses(&open, l);
            rec->barriers += p->barrier;
            rec->piece_seconds[rec->pieces - 1] += p->seconds;
        }
    }
    rec->piece_measured = memory_new((size_t)rec->pieces + 1, sizeof *rec->piece_measured);
    free(open.list);
}

void schedule_free(gpu_recording *rec) {
    free(rec->parts);
    free(rec->piece_seconds);
    free(rec->piece_measured);
    rec->parts = NULL;
    rec->piece_seconds = rec->piece_measured = NULL;
    rec->part_count = rec->part_capacity = rec->barriers = rec->pieces = 0;
}

/* Every launch takes the share of its pieces' time that it was expected to take. */
static double note_measured(gpu_recording *rec) {
    for (int i = 0; i < rec->count; i++) rec->launches[i].seconds = 0;
    double all = 0;
    int piece = -1;
    for (int k = 0; k < rec->part_count; k++) {
        const launch_part *p = &rec->parts[k];
        piece += p->starts_piece;
        double expected = rec->piece_seconds[piece], factor = expected > 0 ? rec->piece_measured[piece] / expected : 1;
        rec->launches[p->launch].seconds += p->seconds * factor;
        all += p->seconds * factor;
    }
    return all;
}

bool schedule_learn(gpu_recording *rec) {
    const double most = rec->gpu->pace.piece_s;
    double longest = 0;
    for (int i = 0; i < rec->pieces; i++)
        if (rec->piece_measured[i] > longest) longest = rec->piece_measured[i];
    if (rec->adjustments == MOST_ADJUSTMENTS || most <= 0 || longest <= 0) return false;
    double all = note_measured(rec);
    bool too_long = longest > SLACK * most;
    bool too_many = rec->adjustments < MOST_MERGES && rec->pieces > 2 && rec->pieces > 2 * (all / most + 1);
    if (too_long || too_many) rec->adjustments++;
    return too_long || too_many;
}
