/* Adapters by name, for <lora:name:weight> in prompts. */
#ifndef VULORA_CLI_LORA_FOLDER_H
#define VULORA_CLI_LORA_FOLDER_H

#include "base/error.h"

/* The file that `name` means in the folder or its subfolders: NAME.safetensors, else the file whose metadata says ss_output_name NAME,
   as in webui. Freed by the caller; NULL on error, which names the nearest there is. */
char *lora_folder_find(const char *folder, const char *name, error *err);

#endif
