/* Drawing one picture: prompts encoded as stable-diffusion-webui does, denoised, decoded. For `generate` and for previews in training. */
#ifndef VULORA_CLI_DRAW_H
#define VULORA_CLI_DRAW_H

#include "diffusion/denoise.h"
#include "diffusion/prompt.h"
#include "pipeline/pipeline.h"

typedef struct draw_settings {
    int width, height; /* pixels, multiples of 8 */
    int steps, clip_skip;
    const sampler_kind *sampler;
    sigma_spacing spacing;
    float cfg;
    random_source source;
    bool one_by_one;  /* with and without the prompt in two runs instead of one: less memory */
    bool keep_models; /* what was loaded stays; else each model's memory is given back when its work on the picture is done */
} draw_settings;

/* A prompt and its negative, encoded: for every stage the states of the text encoder. */
typedef struct draw_prompt {
    prompt_plan parsed;
    float **states; /* [stage_count]: [tokens, width] */
    int *tokens;
} draw_prompt;

typedef struct draw_prompts {
    draw_prompt positive, negative;
} draw_prompts;

/* Encodes with the adapters that are on the pipeline's stack now; the <lora:...> in the text are the caller's business
   (prompts->positive.parsed.loras). draw_prompts_free also after a failure. */
bool draw_prompts_encode(pipeline *p, const draw_settings *s, const char *positive, const char *negative, draw_prompts *out, error *err);
void draw_prompts_free(draw_prompts *prompts);

/* What a picture takes on the device, loaded weights included, and whether that is there. */
typedef struct draw_memory {
    size_t denoising, decoding; /* bytes */
    bool fits;                  /* one after the other, into what can be had at all */
    bool easily;                /* and into what is free now */
    bool together;              /* both at once */
} draw_memory;

bool draw_measure(pipeline *p, const draw_settings *s, const draw_prompts *prompts, draw_memory *memory, error *err);
/* Chooses one_by_one where memory needs it, and keep_models where pictures follow and there is room. memory: as of then. False when the
   picture cannot fit: the error names a size that would. */
bool draw_fit_memory(pipeline *p, draw_settings *s, const draw_prompts *prompts, bool more_follow, draw_memory *memory, error *err);

/* progress: after every step. decoding: before the picture is made of the latents. cancel stops the drawing before the next step. Each may
   be NULL. */
typedef struct draw_watch {
    denoise_progress progress;
    void (*decoding)(void *user);
    void *user;
    const atomic_bool *cancel;
} draw_watch;

/* rgb: [height, width, 3], freed by the caller; NULL unless the status is DENOISE_DONE. */
denoise_status draw_picture(pipeline *p, const draw_settings *s, const draw_prompts *prompts, uint64_t seed, const draw_watch *watch,
                            uint8_t **rgb, error *err);

#endif
