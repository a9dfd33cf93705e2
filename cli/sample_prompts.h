/* The file of --sample-prompts: a prompt a line, with sd-scripts' options behind it; empty lines and lines beginning with # are passed
   over. a photo of sks dog --n blurry --w 512 --h 768 --d 1 --l 7.5 --s 28 --ss euler_a */
#ifndef VULORA_CLI_SAMPLE_PROMPTS_H
#define VULORA_CLI_SAMPLE_PROMPTS_H

#include "cli/draw.h"

typedef struct sample_prompt {
    char *prompt, *negative;
    draw_settings settings; /* width and height 0: not given */
    uint64_t seed;
} sample_prompt;

typedef struct sample_prompts {
    sample_prompt *item;
    int count;
} sample_prompts;

/* What a line does not say is taken from `defaults` and `seed`. False: the error names file and line. */
bool sample_prompts_read(sample_prompts *out, const char *path, const draw_settings *defaults, uint64_t seed, error *err);
void sample_prompts_free(sample_prompts *prompts);

#endif
