/* What bcc expects of a configured kernel tree, for programs that use the UAPI alone. */
#include <linux/types.h>

#define KBUILD_MODNAME "nono"
#define CONFIG_BPF_SYSCALL 1

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
typedef __SIZE_TYPE__ size_t;
typedef __UINTPTR_TYPE__ uintptr_t;

enum { false = 0, true = 1 };
