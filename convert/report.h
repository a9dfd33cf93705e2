/* What a conversion has to say: modules by what became of them, and how much was cut. */
#ifndef VULORA_CONVERT_REPORT_H
#define VULORA_CONVERT_REPORT_H

#include "convert/draft.h"
#include "convert/recast.h"

typedef enum report_group {
    REPORT_NORMS,       /* left out: a LoRA holds no norms */
    REPORT_BIASES,      /* left out: nor biases */
    REPORT_UNKNOWN,     /* left out: not in the model, or of no module */
    REPORT_WEBUI_DORA,  /* webui takes its magnitudes for others */
    REPORT_WEBUI_GLORA, /* webui skips GLoRA on convolutions */
    REPORT_WEBUI_IA3,   /* and (IA)^3 on the outputs of convolutions */
    REPORT_GROUPS
} report_group;

enum { REPORT_KINDS = 10 };

/* One module that was cut. */
typedef struct report_cut {
    char *flat;
    recast_loss loss;
} report_cut;

typedef struct convert_report {
    struct {
        char **names;
        int count;
    } groups[REPORT_GROUPS];
    int modules;
    bool mixed_alphas;               /* of LoRAs in kohya's spelling, which diffusers reads wrongly */
    const char *kinds[REPORT_KINDS]; /* titles of the kinds written */
    report_cut *losses;
    int loss_count;
} convert_report;

/* "left out, because a LoRA holds no norms" */
const char *report_group_text(report_group group);

void report_name(convert_report *r, report_group group, const char *name);
void report_loss(convert_report *r, const char *flat, recast_loss loss);
/* Counts the modules, and names what webui will not load of a file in kohya's spelling. */
void report_draft(convert_report *r, const draft *d, bool kohya);
/* Of everything that was cut: relative to the norm of the whole. */
double report_error(const convert_report *r);
void report_free(convert_report *r);

#endif
