/* What most commands begin with: the device, the model and the adapters that the options name. */
#ifndef VULORA_CLI_SESSION_H
#define VULORA_CLI_SESSION_H

#include "cli/options.h"
#include "pipeline/pipeline.h"

typedef struct session {
    device *device;
    pipeline *pipeline;
    char *model_path; /* --model with `demo` looked up */
} session;

/* Opens device, model and the --lora stack, and says on stderr which device computes. On error nothing is left open. */
bool session_open(session *s, const options *o, error *err);
/* The parts of it. */
bool session_open_device(session *s, const options *o, error *err);
bool session_open_model(session *s, const options *o, error *err);
/* One adapter on top of the stack, trainable or not; what was not applied is said. NULL on error. */
adapter *session_add_adapter(session *s, const adapter_spec *spec, bool trainable, error *err);
void session_close(session *s);

/* The file that --model means: `demo` is the model that comes with the program. Freed by the caller; NULL on error. */
char *session_find_model(const char *name, error *err);

/* Width and height that the model draws best: what its metadata says (modelspec.resolution), else 512, or 128 for a model narrower
   than SD 1.5. */
options_size session_native_size(const session *s);
/* The learning rate a LoRA is trained with when nothing else was said: 1e-4; narrower models want larger steps, 1e-3. */
double session_native_rate(const session *s);

#endif
