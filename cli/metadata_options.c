#include "cli/metadata_options.h"

metadata_edits metadata_options_read(const options *o) {
    return (metadata_edits){
        .strip = o->strip_metadata > 0,
        .title = o->title,
        .description = o->description,
        .notes = o->notes,
        .trigger = o->trigger,
        .author = o->author,
        .license = o->license,
        .tags = o->tags,
        .preview = o->preview,
        .set = o->set.item,
        .set_count = o->set.count,
        .side_files = o->side_files > 0,
        .negative = o->negative,
        .preferred_weight = o->preferred_weight,
    };
}
