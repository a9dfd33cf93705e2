#include "lora/block_weights.h"

#include "lora/settings.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BASE, IN, ATTENTION_BLOCKS = 17 };

/* Where the short list's numbers belong: BASE, IN01, IN02, IN04, IN05, IN07, IN08, M00, OUT03 .. OUT11. */
static const int ATTENTION[ATTENTION_BLOCKS] = {0, 2, 3, 5, 6, 8, 9, 13, 17, 18, 19, 20, 21, 22, 23, 24, 25};

static const struct {
    const char *name, *weights;
} PRESETS[] = {
    {"NONE", "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0"},   {"ALL", "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"},
    {"INS", "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0"},    {"IND", "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0"},
    {"INALL", "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0"},  {"MIDD", "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0"},
    {"OUTD", "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0"},   {"OUTS", "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1"},
    {"OUTALL", "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"}, {"ALL0.5", ".5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5"},
};

/* How many numbers the list has; -1: it is none. */
static int read_list(const char *text, float values[BLOCK_WEIGHTS]) {
    for (int count = 0; count < BLOCK_WEIGHTS; text++) {
        char *end;
        double value = strtod(text, &end);
        if (end == text || !isfinite(value) || fabs(value) > 1e6) return -1;
        values[count++] = (float)value;
        text = end + strspn(end, " ");
        if (!*text) return count;
        if (*text != ',') return -1;
    }
    return -1;
}

bool block_weights_parse(block_weights *out, const char *text, error *err) {
    float values[BLOCK_WEIGHTS];
    const char *list = text;
    for (size_t i = 0; i < sizeof PRESETS / sizeof *PRESETS; i++)
        if (strcmp(text, PRESETS[i].name) == 0) list = PRESETS[i].weights;
    int count = read_list(list, values);
    *out = (block_weights){.given = true};
    if (count == BLOCK_WEIGHTS) memcpy(out->of, values, sizeof values);
    for (int i = 0; count == ATTENTION_BLOCKS && i < count; i++) out->of[ATTENTION[i]] = values[i];
    if (count == BLOCK_WEIGHTS || count == ATTENTION_BLOCKS) return true;
    return error_set(err,
                     "lbw=%.200s: is neither 17 nor 26 numbers with commas between them (BASE, IN.., M00, OUT..), nor NONE, ALL, INS, IND, "
                     "INALL, MIDD, OUTD, OUTS, OUTALL or ALL0.5",
                     text);
}

void block_weights_text(const block_weights *b, char out[BLOCK_WEIGHTS_TEXT]) {
    size_t used = 0;
    for (int i = 0; i < BLOCK_WEIGHTS; i++)
        used += (size_t)snprintf(out + used, BLOCK_WEIGHTS_TEXT - used, "%s%g", i ? "," : "", (double)b->of[i]);
}

float block_weights_of(const block_weights *b, const module_info *m) {
    if (!b->given) return 1;
    if (m->part == CHECKPOINT_TEXT_ENCODER) return b->of[BASE];
    if (m->part == CHECKPOINT_UNET && strcmp(m->name, "conv_in") == 0) return b->of[IN];
    int block = module_block(m); /* 1 .. 11 down, 12 the middle, 13 .. 24 up */
    return block < 0 ? 1 : b->of[IN + block];
}
