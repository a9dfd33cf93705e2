/* The commands: each reads its options and returns an exit status (terminal.h). */
#ifndef VULORA_CLI_COMMANDS_H
#define VULORA_CLI_COMMANDS_H

#include "cli/options.h"

int cmd_train(const options *o);
int cmd_generate(const options *o);
int cmd_grid(const options *o);
int cmd_probe(const options *o);
int cmd_inspect(const options *o);
int cmd_devices(const options *o);
int cmd_convert(const options *o);
int cmd_merge(const options *o);
int cmd_extract(const options *o);
int cmd_bench(const options *o);

#endif
