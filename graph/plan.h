/* A plan: a tape placed in memory on its device and, on Vulkan, recorded; then run as often as wanted. */
#ifndef VULORA_GRAPH_PLAN_H
#define VULORA_GRAPH_PLAN_H

#include "graph/tape.h"

typedef struct plan plan;

/* Bytes of the arena that the tape needs on its device, without making it. Also fails when the tape holds an error. */
bool plan_measure(tape *t, size_t *bytes, error *err);

/* Memory that several plans use in turn: what one leaves in it is lost when another runs. It must outlive them. NULL: no room. */
typedef struct shared_arena shared_arena;

shared_arena *arena_create(device *d, size_t bytes, error *err);
void arena_free(shared_arena *a);
size_t arena_bytes(const shared_arena *a);

/* As plan_create, in an arena shared with other plans; one too small for the tape is an error. */
plan *plan_create_in(tape *t, shared_arena *shared, error *err);

/* Takes over the tape: plan_free frees it. On failure (the tape's own error, no room, a tensor over a device limit) NULL, and the tape is
 * freed. */
plan *plan_create(tape *t, error *err);
void plan_free(plan *p);

/* Bytes of the arena that this plan's tensors take. */
size_t plan_arena_bytes(const plan *p);
/* Runs every record once and waits. */
bool plan_run(plan *p, error *err);

/* Seconds spent per op on the CPU since the plan was made, for bench: calls back once per op name in use. */
void plan_profile(const plan *p, void (*report)(void *user, const char *op, int records, double seconds, double flops), void *user);

#endif
