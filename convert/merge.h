/* Several adapters in one: the weighted sum of what they change. */
#ifndef VULORA_CONVERT_MERGE_H
#define VULORA_CONVERT_MERGE_H

#include "convert/convert.h"
#include "lora/stack.h"

/* LoRAs become a LoRA of the sum of their ranks, which is exact; anything else, or TARGET_FULL, the full difference. With a rank, the best
   LoRA of that rank. Kinds that read the model's weight read the bare model's. */
bool merge_adapters(const adapter_spec *specs, int count, const char *out, const convert_options *o, convert_report *report, error *err);

#endif
