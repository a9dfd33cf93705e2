/* Writing an adapter as sd-scripts does: kohya names, metadata, both hashes (formats.md 3.1, 4 and 5). */
#ifndef VULORA_LORA_SAVE_H
#define VULORA_LORA_SAVE_H

#include "formats/safetensors.h"
#include "lora/adapter.h"

typedef struct adapter_save_options {
    dtype type;                       /* F32, F16 or BF16: of every tensor, alpha too */
    const safetensors_pair *metadata; /* the trainer's: ss_*, modelspec.* */
    size_t metadata_count;
    const safetensors_pair *arguments; /* for ss_network_args, behind those that the adapter itself tells */
    size_t argument_count;
    bool lycoris; /* the settings are such as only LyCORIS has, whatever the kind */
} adapter_save_options;

/* Adds ss_network_module, ss_network_dim, ss_network_alpha, ss_network_args (of 3x3 convolutions), sshs_model_hash and sshs_legacy_hash.
   Values that are not finite, or would not be in that type, are refused; what stood at `path` before is kept until the new file is whole.
 */
bool adapter_save(const adapter *a, const char *path, const adapter_save_options *options, error *err);

/* A number as Python's str() writes a float: "8.0", "0.0001", "1e-05". For metadata. */
void metadata_number(double value, char out[32]);

#endif
