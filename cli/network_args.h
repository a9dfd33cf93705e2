/* sd-scripts' --network_module and --network_args: what they say about an adapter, as options of `train`. */
#ifndef VULORA_CLI_NETWORK_ARGS_H
#define VULORA_CLI_NETWORK_ARGS_H

#include "cli/options.h"

/* Sets the options that the module's name and its KEY=VALUE words stand for; what the command line says itself stays. What sd-scripts and
   LyCORIS take when a value is not given is set too. False: an unknown module, key or value, with the nearest known one. */
bool network_args_apply(options *o, error *err);

#endif
