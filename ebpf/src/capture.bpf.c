/* The one object: every concern is a file of its own, and all share what stands here. Read with ../abi, which gives the
 * records, and by node/src/capture, which loads it. */
#include "common.h"
#include "process.bpf.c"
#include "delegate.bpf.c"
#include "file.bpf.c"
#include "late.bpf.c"
#include "network.bpf.c"
#include "other.bpf.c"
#include "syscall.bpf.c"
#include "uring.bpf.c"
#include "enforce.bpf.c"

char LICENSE[] SEC("license") = "GPL";
