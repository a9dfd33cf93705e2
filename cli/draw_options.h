/* What the command line says about pictures, for `generate` and `grid`. */
#ifndef VULORA_CLI_DRAW_OPTIONS_H
#define VULORA_CLI_DRAW_OPTIONS_H

#include "cli/draw.h"
#include "cli/session.h"

/* seed: --seed, or a fresh one for -1. */
bool draw_options_read(const options *o, const session *s, draw_settings *out, uint64_t *seed, error *err);

#endif
