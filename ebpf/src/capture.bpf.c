/* The one object: every concern is a file of its own, and all share what stands here. Read with ../abi, which gives the
 * records, and by node/src/capture, which loads it. */
#include "common.h"
#include "process.bpf.c"

char LICENSE[] SEC("license") = "GPL";
