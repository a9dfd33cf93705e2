/* Which caption shows how to ask for what was trained. */
#ifndef VULORA_CLI_TYPICAL_CAPTION_H
#define VULORA_CLI_TYPICAL_CAPTION_H

#include "datasets/dataset.h"

/* The first caption with the trigger word in it: `trigger` when given, else the word that stands in the most captions (articles,
   prepositions and "photo" aside). Ordinary pictures that keep the model's other knowledge do not have it. */
const char *typical_caption(const dataset *data, const char *trigger);

#endif
