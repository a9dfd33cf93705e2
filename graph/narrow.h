/* On a CPU that computes in bf16: temporaries that every reader rounds to bf16 anyway are stored so, and constants that only products
   read are packed for them. No result changes by either. */
#ifndef VULORA_GRAPH_NARROW_H
#define VULORA_GRAPH_NARROW_H

#include "graph/tape.h"

/* Before the tape is planned; doing it again changes nothing. */
void tape_narrow(tape *t);
/* Before the tape's constants are loaded. Those that were packed for another tape and are read otherwise by this one are to be loaded
   again. */
void tape_pack(tape *t);

#endif
