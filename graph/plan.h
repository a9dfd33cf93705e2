/* A plan: a tape placed in memory on its device and, on Vulkan, recorded; then run as often as wanted. */
#ifndef VULORA_GRAPH_PLAN_H
#define VULORA_GRAPH_PLAN_H

#include "graph/tape.h"

typedef struct plan plan;

typedef struct plan_size {
    size_t arena;     /* bytes of the arena */
    size_t live;      /* most that is in use at one time: no arena can be smaller */
    size_t constants; /* of the frozen weights that the tape reads */
    size_t missing;   /* of those that are not loaded yet */
} plan_size;

/* What the tape will take on its device; nothing is loaded or made. Also fails when the tape holds an error. */
bool plan_measure(tape *t, plan_size *size, error *err);

/* Memory that several plans use in turn: what one leaves in it is lost when another runs. It must outlive them. NULL: no room. */
typedef struct shared_arena shared_arena;

shared_arena *arena_create(device *d, size_t bytes, error *err);
void arena_free(shared_arena *a);
size_t arena_bytes(const shared_arena *a);

/* As plan_create, in an arena shared with other plans; one too small for the tape is an error. */
plan *plan_create_in(tape *t, shared_arena *shared, error *err);

/* Loads the constants that the tape reads and places the rest. Takes over the tape: plan_free frees it. On failure (the tape's own error,
 * no room, a tensor over a device limit) NULL, and the tape is freed. */
plan *plan_create(tape *t, error *err);
void plan_free(plan *p);

/* Bytes of the arena that this plan's tensors take. */
size_t plan_arena_bytes(const plan *p);
/* Runs every record once and waits. */
bool plan_run(plan *p, error *err);

/* Adds what one run sends to a Vulkan device to *sum; nothing on the CPU. */
void plan_count(const plan *p, gpu_counts *sum);

/* Seconds spent per op on the CPU since the plan was made, for bench: calls back once per op name in use. */
void plan_profile(const plan *p, void (*report)(void *user, const char *op, int records, double seconds, double flops), void *user);

#endif
