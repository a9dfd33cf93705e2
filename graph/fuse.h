/* On the CPU: a record whose output is read once, by an op that it can do in passing, takes that over. */
#ifndef VULORA_GRAPH_FUSE_H
#define VULORA_GRAPH_FUSE_H

#include "graph/tape.h"

/* Before the tape is planned; doing it again changes nothing. */
void tape_fuse(tape *t);

#endif
