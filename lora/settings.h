/* Rank, alpha and learning rate of every single module of a new adapter: sd-scripts' settings by block, and own ones by expression. */
#ifndef VULORA_LORA_SETTINGS_H
#define VULORA_LORA_SETTINGS_H

#include "lora/adapter.h"

enum { ADAPTER_BLOCKS = 25, ADAPTER_SIDE_BLOCKS = 12 };

/* sd-scripts' number of the U-Net block that a module lies in: down 1..11, the middle 12, up 13..24. -1: it lies in none. */
int module_block(const module_info *m);

typedef struct module_setting {
    int rank;     /* 0: the module gets no adapter */
    double alpha; /* as the options mean it, before any rank stabilisation */
    double rate;  /* what the learning rate is multiplied with; 0: no adapter */
} module_setting;

typedef struct module_settings module_settings;

/* NULL: an option's text says nothing usable; the error names it. The options must outlive the result. */
module_settings *module_settings_create(const adapter_options *o, error *err);
void module_settings_free(module_settings *s);

/* What comes later counts: rank and conv-rank, then the blocks', then the expressions in their order. */
module_setting module_settings_of(const module_settings *s, const module_info *m);

/* A POSIX extended regular expression on module names: on the path in its model, and with "unet." or "text_encoder." in front. */
bool module_matches(const void *regex /* regex_t */, const module_info *m);

#endif
