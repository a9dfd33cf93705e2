/* What a training does differently from step to step: dropouts and DyLoRA's random rank. The tape is recorded once; what changes sits in
   small inputs, which are written before a run and are pure functions of the seed and of the numbers of update and batch. Nothing of it
   is on a tape that is not recorded between adapter_step_begin and adapter_step_end: previews have the whole adapter.

   dropout   of LoRA, as sd-scripts (networks/lora.py): `network` on single elements of down(x), `rank` on its columns, picture by picture,
             both made up for by 1 / (1 - rate). Of kinds whose difference LyCORIS makes: `rank` on the outputs, not made up for.
             `module` leaves out whole modules for an update, which does not touch their weights and moments then.
   DyLoRA    (Valipour et al. 2022): an update draws a block of ranks; the forward pass has the ranks up to its end, and only the block's
             own weights are trained. As in the paper one draw holds for all modules, so what is trained is the adapter that cutting all of
             them at that rank gives. (sd-scripts and LyCORIS draw for every module; sd-scripts leaves the ranks above the block in the
             forward pass.) The product is scaled by alpha / rank * sqrt(rank / ranks in use), as sd-scripts does: with all ranks in use
             that is alpha / rank, which every program applies the file with. (LyCORIS' alpha / (block index + 1) is larger than that by
             the block size.) */
#ifndef VULORA_LORA_STEPWISE_H
#define VULORA_LORA_STEPWISE_H

#include "lora/adapter.h"
#include "ops/ops.h"

/* The inputs of one training tape; each may be absent. */
struct adapter_step {
    const adapter *adapter;
    tensor *batch_key, *update_key; /* of dropouts drawn for each batch, and for each update */
    tensor *gates;                  /* [modules, 4] of update_gate */
    struct rank_prefix {
        int64_t rank;
        tensor *factors; /* [rank]: the scale for ranks in use, else 0 */
    } * prefixes;
    int prefix_count;
};

/* Kinds find the step's inputs from begin to end; free may come when the tape is no longer written to. */
void adapter_step_begin(adapter *a, tape *t, adapter_step *s);
void adapter_step_end(adapter *a);
void adapter_step_free(adapter_step *s);
/* Before a run of the tape. update: how many went before; batch: a number of its own for each. */
bool adapter_step_write(const adapter_step *s, int64_t update, uint64_t batch, error *err);
/* Behind the backward pass: gradients of what the update does not train are 0. */
void adapter_step_gate_gradients(const adapter_step *s, tape *t);

/* ---- Which weights an update trains ---- */

/* Whether that is not always all of them. */
bool adapter_is_gated(const adapter *a);
/* The gate of a tensor, whose number in `gates` is its module's. */
update_gate adapter_gate(const adapter *a, const adapter_module *m, const adapter_tensor *x, tensor *gates);
/* Of a module's ranks, those that are trained: *begin .. *end - 1; none when begin == end. A module that has no ranks of its own in this
   has one. */
void adapter_window(const adapter *a, const adapter_module *m, int64_t update, int *begin, int *end);
/* Most windows that a module can have, not counting the empty one; window number: *begin / block size. */
int adapter_window_count(const adapter *a);

/* ---- For kinds ---- */

/* down(x) of a LoRA, as the step has it. */
tensor *adapter_step_hidden(const adapter_module *m, tape *t, tensor *h);
/* Whether outputs of other kinds are dropped. */
bool adapter_step_drops(const adapter_module *m);
/* y + the change's output as the step has it; y NULL: that alone. */
tensor *adapter_step_add(const adapter_module *m, tape *t, tensor *change, tensor *y);
/* Of a kind that changes the layer's product as a whole: the product, or the unchanged one in updates that leave the module out. */
bool adapter_step_skips(const adapter_module *m);
tensor *adapter_step_choose(const adapter_module *m, tape *t, tensor *changed, tensor *unchanged);

/* ---- Max-norm regularisation ---- */

/* On the update's tape: where the norm of the module's change is above a->stepwise.max_norm, its factors shrink alike until it is not
   (sd-scripts' and LyCORIS' scale_weight_norms). A trained scalar takes all of it, as LyCORIS has it. */
void adapter_limit_norm(const adapter *a, const adapter_module *m, tape *t);

#endif
