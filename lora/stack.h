/* A stack of adapters: applied one after another while a tape is recorded, each with its own strength in the U-Net and in the text
   encoder. The base model is never touched: after a change the next tape simply has other branches. */
#ifndef VULORA_LORA_STACK_H
#define VULORA_LORA_STACK_H

#include "lora/block_weights.h"
#include "lora/kind.h"
#include "lora/layer.h"

adapter_stack *adapter_stack_create(void);
void adapter_stack_free(adapter_stack *s); /* and the adapters in it */

/* Puts an adapter on top; the stack owns it. */
void adapter_stack_add(adapter_stack *s, adapter *a, float unet_weight, float text_weight);
/* Takes out and frees the adapter. */
void adapter_stack_remove(adapter_stack *s, adapter *a);
int adapter_stack_count(const adapter_stack *s);
adapter *adapter_stack_at(const adapter_stack *s, int index); /* 0: applied first */
void adapter_stack_set_weights(adapter_stack *s, const adapter *a, float unet_weight, float text_weight);

void adapter_stack_set_blocks(adapter_stack *s, const adapter *a, const block_weights *blocks);

/* "FILE[:WEIGHT[:TE_WEIGHT]][:lbw=BLOCKS]" of --lora, BLOCKS as block_weights_parse has them. WEIGHT is 1, TE_WEIGHT is WEIGHT when not
   given. A name that exists as a whole is taken as it is. */
typedef struct adapter_spec {
    char *path; /* freed by the caller */
    float unet_weight, text_weight;
    block_weights blocks;
} adapter_spec;

/* The strength that it gives a module. */
float adapter_spec_weight(const adapter_spec *spec, const module_info *m);

bool adapter_spec_parse(const char *text, adapter_spec *out, error *err);

#endif
