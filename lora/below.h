/* What the adapters below one of a stack make of a layer's weight, where no sum of small products says it: worked out on the host once, and
   kept on the device. Only a DoRA needs it, on top of a kind that reads the weight: its norms are those of the weight it changes. */
#ifndef VULORA_LORA_BELOW_H
#define VULORA_LORA_BELOW_H

#include "lora/adapter.h"

typedef struct adapter_below adapter_below;

/* An adapter with the strength it has at the layer. */
typedef struct adapter_layer {
    const adapter *adapter;
    float weight;
} adapter_layer;

adapter_below *adapter_below_create(void);
void adapter_below_free(adapter_below *b);
/* Before an adapter is freed: what is known of it is not found again, also when another one comes to lie at its address. */
void adapter_below_forget(adapter_below *b, const adapter *a);

/* The weight's change under these layers, the first applied first: fp32, shaped as the engine's weight, on their device. Belongs to b. NULL
   on error: layers that are being trained, no memory. */
tensor *adapter_below_change(adapter_below *b, const adapter_layer *layers, int count, const module_info *info, error *err);

#endif
