/* vulora convert IN: an adapter in another format, number type, kind or rank. */
#include "cli/commands.h"
#include "cli/metadata_options.h"
#include "cli/rewrite.h"
#include "cli/terminal.h"

#include <stdlib.h>

int cmd_convert(const options *o) {
    error err = {""};
    convert_options c;
    convert_report report = {0};
    progress shown = {0};
    char *model;
    metadata_edits edits = metadata_options_read(o);
    if (!rewrite_options(o, &c, &err) || !metadata_edits_check(&edits, &err)) return terminal_refuse(&err);
    if (metadata_edits_given(&edits)) c.edits = &edits;
    c.progress = rewrite_progress, c.user = &shown;
    bool ok = rewrite_prepare(o, &c, &model, &err) && convert_adapter(o->words.item[0], o->output, &c, &report, &err);
    progress_end(&shown);
    if (ok) rewrite_say(o, &report);
    report_free(&report);
    free(model);
    return ok ? EXIT_DONE : terminal_fail(&err);
}
