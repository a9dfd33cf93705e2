/* vulora merge --into CHECKPOINT: adapters put into a model. */
#ifndef VULORA_CLI_MERGE_INTO_H
#define VULORA_CLI_MERGE_INTO_H

#include "cli/options.h"

/* o->words are the adapters, o->into the model, o->output what is written. Returns the exit status. */
int merge_into(const options *o);

#endif
