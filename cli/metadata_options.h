/* What the command line says about a file's metadata and side files. */
#ifndef VULORA_CLI_METADATA_OPTIONS_H
#define VULORA_CLI_METADATA_OPTIONS_H

#include "cli/options.h"
#include "convert/metadata.h"

metadata_edits metadata_options_read(const options *o);

#endif
