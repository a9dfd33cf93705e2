/* What convert and merge share: reading their options, and saying what became of the modules. */
#ifndef VULORA_CLI_REWRITE_H
#define VULORA_CLI_REWRITE_H

#include "cli/options.h"
#include "convert/convert.h"

/* Checks the options before any work. False: wrong usage. */
bool rewrite_options(const options *o, convert_options *out, error *err);
/* That --output can be written; and finds --model, whose path the caller frees. NULL: there is none. */
bool rewrite_prepare(const options *o, convert_options *c, char **model, error *err);
/* For convert_options.progress; user: a zeroed progress. */
void rewrite_progress(void *user, int64_t done, int64_t total);
void rewrite_say(const options *o, const convert_report *r);

#endif
