/* Telling by its tensors and metadata what a file is that is no SD 1.x adapter, so that it is refused by its name. */
#ifndef VULORA_LORA_FOREIGN_H
#define VULORA_LORA_FOREIGN_H

#include "formats/safetensors.h"

/* True: nothing speaks against an SD 1.x adapter. False: the error says what the file is. */
bool foreign_check(const safetensors *st, error *err);

#endif
