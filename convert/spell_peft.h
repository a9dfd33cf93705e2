/* PEFT's folders: one model's adapter_config.json and adapter_model.safetensors (formats.md 6.2). */
#ifndef VULORA_CONVERT_SPELL_PEFT_H
#define VULORA_CONVERT_SPELL_PEFT_H

#include "convert/spell.h"

/* Writes PATH/unet and PATH/text_encoder, those of them that the draft has modules of. */
bool spell_peft(draft *d, const char *path, const spell_options *o, error *err);

/* Of spell.c, for this: adds a tensor under `name`, which it frees; writes metadata, hashes and the file. */
bool spell_add(safetensors_writer *w, const draft_module *m, const draft_tensor *t, char *name, dtype type, error *err);
bool spell_finish(safetensors_writer *w, const char *path, const spell_options *o, error *err);

/* DoRA's magnitudes of the output axis in PEFT's shape: [out], of convolutions [1, out, 1, 1]. */
void spell_magnitude(const draft_module *m, draft_tensor *t);

#endif
