/* bcc carries its own copy of the BPF UAPI. */
#include <uapi/linux/bpf.h>
