/* The samplers' names on the command line: diffusion's table, and stable-diffusion-webui's older names that end in the schedule. */
#ifndef VULORA_CLI_SAMPLERS_H
#define VULORA_CLI_SAMPLERS_H

#include "diffusion/sampler.h"

#include <stdbool.h>

const char *sampler_name_at(int index);
const char *sampler_name_find(const char *text);
/* "DPM++ 2M Karras" names sampler and schedule at once. */
bool sampler_names_karras(const char *text);

#endif
