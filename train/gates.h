/* Which weights the optimizer moves in an update, where that is not all of them, and how often each was moved before: AdamW's correction
   for its beginning counts the updates that a weight took part in, as torch does for parameters without a gradient. Pure functions of the
   seed and the number of the update. */
#ifndef VULORA_TRAIN_GATES_H
#define VULORA_TRAIN_GATES_H

#include "lora/stepwise.h"

typedef struct train_gates train_gates;

/* NULL where every update moves everything. t: the update's tape, which gets an input. */
train_gates *train_gates_create(const adapter *a, tape *t);
void train_gates_free(train_gates *g);
tensor *train_gates_input(const train_gates *g);
/* Before a run of the update's tape. update: how many went before. */
bool train_gates_write(const train_gates *g, int64_t update, float beta1, float beta2, error *err);
/* Update number `update` has been applied. */
void train_gates_count(train_gates *g, int64_t update);
/* As after the first `updates` of them. */
void train_gates_recount(train_gates *g, int64_t updates);

#endif
