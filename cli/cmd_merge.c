/* vulora merge FILE...: the weighted sum of several adapters as one, or put into a model. */
#include "base/memory.h"
#include "cli/commands.h"
#include "cli/merge_into.h"
#include "cli/metadata_options.h"
#include "cli/rewrite.h"
#include "cli/terminal.h"
#include "convert/merge.h"

#include <stdlib.h>

int cmd_merge(const options *o) {
    if (o->into) return merge_into(o);
    error err = {""};
    convert_options c;
    convert_report report = {0};
    progress shown = {0};
    char *model;
    metadata_edits edits = metadata_options_read(o);
    if (!rewrite_options(o, &c, &err) || !metadata_edits_check(&edits, &err)) return terminal_refuse(&err);
    if (metadata_edits_given(&edits)) c.edits = &edits;
    c.progress = rewrite_progress, c.user = &shown;
    int count = 0;
    adapter_spec *specs = memory_new((size_t)o->words.count, sizeof *specs);
    bool ok = rewrite_prepare(o, &c, &model, &err);
    for (; ok && count < o->words.count; count += ok) ok = adapter_spec_parse(o->words.item[count], &specs[count], &err);
    ok = ok && merge_adapters(specs, count, o->output, &c, &report, &err);
    progress_end(&shown);
    if (ok) rewrite_say(o, &report);
    for (int i = 0; i < count; i++) free(specs[i].path);
    free(specs);
    report_free(&report);
    free(model);
    return ok ? EXIT_DONE : terminal_fail(&err);
}
