/* From the options of `train` (and `bench`) to what the trainer wants. */
#ifndef VULORA_CLI_TRAIN_SETUP_H
#define VULORA_CLI_TRAIN_SETUP_H

#include "cli/options.h"
#include "cli/session.h"
#include "train/trainer.h"

/* Adapter and learner settings; also for bench. */
adapter_options train_adapter_options(const options *o);
learner_options train_learner_options(const options *o);
double train_text_rate(const options *o);

/* What can be checked without reading the model: missing options, contradictions, --output and the other places. False with *usage set:
   wrong usage. output: the adapter file, freed by the caller. */
bool train_check(const options *o, char **output, bool *usage, error *err);

/* The folder of encoded pictures: --cache-dir, else the user's cache folder; NULL, with a note, when that cannot be made. Freed by the
   caller. */
char *train_cache_folder(const options *o);

dataset_options train_dataset_options(const options *o, options_size resolution);
train_options train_make_options(const options *o, options_size resolution, double native_rate, const char *output, const char *cache);

#endif
