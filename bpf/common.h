/* SPDX-License-Identifier: Apache-2.0
 *
 * Maps and the small predicates that every hook family uses. bcc rewrites map calls only in the unit's main file,
 * so the loader joins the files instead of including them: nono_abi.h, common.h, then the families.
 */
enum {
	AF_INET = 2, AF_INET6 = 10,
	SOCK_STREAM = 1, SOCK_DGRAM = 2,
	TCP = 6, UDP = 17, MPTCP = 262,
	SOL_IP = 0, SOL_IPV6 = 41, SO_ORIGINAL_DST = 80,
	ECONNREFUSED = 111,
	DNS_PORT = 53,
	REFUSE = 0, PROCEED = 1,
};

BPF_ARRAY(settings, struct nono_settings, 1);
BPF_ARRAY(open_ports, __u64, NONO_PORT_WORDS);
BPF_SK_STORAGE(sockets, struct nono_origin);
BPF_TABLE("lru_hash", struct nono_source, struct nono_origin, origins, NONO_ORIGINS_MAX);
/* MPTCP's getpeername runs on another socket than its connect did: found again by the client's own end. */
BPF_TABLE("lru_hash", struct nono_source, struct nono_origin, multipath, NONO_ASKERS_MAX);
BPF_TABLE("lru_hash", struct nono_source, struct nono_process, askers, NONO_ASKERS_MAX);
BPF_RINGBUF_OUTPUT(denials, NONO_DENIAL_PAGES);
BPF_ARRAY(unreported, __u64, 1);

static __always_inline struct nono_settings *current_settings(void)
{
	int only = 0;

	return settings.lookup(&only);
}

static __always_inline void store_v4(__u8 *addr, __u32 v4_be)
{
	__u32 *words = (__u32 *)addr;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = v4_be;
}

static __always_inline void store_v6(__u8 *addr, __u32 w0, __u32 w1, __u32 w2, __u32 w3)
{
	__u32 *words = (__u32 *)addr;

	words[0] = w0;
	words[1] = w1;
	words[2] = w2;
	words[3] = w3;
}

/* All words are read before one branch is taken: clang otherwise merges the two branches' reads into arithmetic on the
 * socket pointer, which the verifier refuses.
 */
#define READ_WORD(lvalue) (*(volatile __u32 *)&(lvalue))
#define STORE_END(addr, v4, word4, word6)                                                                  \
	do {                                                                                               \
		__u32 four = READ_WORD(word4);                                                             \
		__u32 w0 = READ_WORD((word6)[0]), w1 = READ_WORD((word6)[1]);                              \
		__u32 w2 = READ_WORD((word6)[2]), w3 = READ_WORD((word6)[3]);                              \
		bool is_four = (v4);                                                                       \
                                                                                                           \
		store_v6(addr, is_four ? 0 : w0, is_four ? 0 : w1, is_four ? bpf_htonl(0xffff) : w2,       \
			 is_four ? four : w3);                                                             \
	} while (0)

static __always_inline bool is_v4(const __u8 *addr)
{
	const __u32 *words = (const __u32 *)addr;

	return words[0] == 0 && words[1] == 0 && words[2] == bpf_htonl(0xffff);
}

static __always_inline bool same_address(const __u8 *a, const __u8 *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

/* Loopback, "this host" (0.0.0.0 and ::, which the kernel takes for loopback) and the namespace's own addresses. */
static __always_inline bool is_local(const __u8 *addr, const struct nono_settings *set)
{
	const __u32 *words = (const __u32 *)addr;

	if (is_v4(addr))
		return addr[12] == 127 || words[3] == 0 || same_address(addr, set->own_v4);
	if (words[0] == 0 && words[1] == 0 && words[2] == 0)
		return words[3] == 0 || words[3] == bpf_htonl(1);
	return same_address(addr, set->own_v6);
}

/* Whether this is a service of the host's that the operator has opened: a listed port of 127.0.0.1 or ::1. Whatever
 * else is loopback stays the sandbox's own.
 */
static __always_inline bool is_opened(const struct nono_destination *to, const struct nono_settings *set)
{
	const __u32 *words = (const __u32 *)to->addr;
	__u32 port = bpf_ntohs(to->port_be), word = port / 64;
	__u64 *bits;

	if (!set->opens_ports)
		return false;
	if (is_v4(to->addr) ? words[3] != bpf_htonl(0x7f000001)
			    : words[0] || words[1] || words[2] || words[3] != bpf_htonl(1))
		return false;
	bits = open_ports.lookup(&word);
	return bits && *bits >> (port % 64) & 1;
}

static __always_inline void fill_process(struct nono_process *process)
{
	process->cgroup_id = bpf_get_current_cgroup_id();
	process->pid = bpf_get_current_pid_tgid() >> 32;
	process->uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(process->comm, sizeof(process->comm));
}

/* A full ring buffer loses the report, never the refusal; how many it lost is counted. */
static __always_inline void report_denial(const struct nono_origin *origin, __u32 reason)
{
	struct nono_denial denial = {};
	__u64 *count;
	int only = 0;

	denial.origin = *origin;
	denial.reason = reason;
	if (denials.ringbuf_output(&denial, sizeof(denial), 0) == 0)
		return;
	count = unreported.lookup(&only);
	if (count)
		__sync_fetch_and_add(count, 1);
}
