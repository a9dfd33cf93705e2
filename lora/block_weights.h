/* Strength by block of the U-Net, as users of the LoRA-block-weight extension write it: BASE (the text encoder), IN00 .. IN11, M00,
   OUT00 .. OUT11, multiplied with an adapter's own strength. */
#ifndef VULORA_LORA_BLOCK_WEIGHTS_H
#define VULORA_LORA_BLOCK_WEIGHTS_H

#include "lora/modules.h"

enum { BLOCK_WEIGHTS = 26, BLOCK_WEIGHTS_TEXT = 512 };

typedef struct block_weights {
    bool given; /* false: 1 everywhere */
    float of[BLOCK_WEIGHTS];
} block_weights;

/* One of the extension's presets (NONE, ALL, INS, IND, INALL, MIDD, OUTD, OUTS, OUTALL, ALL0.5), 26 numbers with commas between them, or
   17: the blocks that have attention and so a LoRA, the others being 0. */
bool block_weights_parse(block_weights *out, const char *text, error *err);
/* All 26 numbers. */
void block_weights_text(const block_weights *b, char out[BLOCK_WEIGHTS_TEXT]);
/* The factor of a module. Those outside of all blocks (time embedding, last convolution) have 1, as in the extension. */
float block_weights_of(const block_weights *b, const module_info *m);

#endif
