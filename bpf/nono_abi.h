/* SPDX-License-Identifier: Apache-2.0
 *
 * What the programs and the Python side share: the only definition. nono_ebpf/kernel/abi.py mirrors it, and a
 * test compares the two through BTF. Fixed widths, padding spelled out and zeroed, enums instead of #define
 * (BTF keeps them). Addresses are 16 bytes, IPv4 stored IPv4-mapped; `_be` is network byte order, everything
 * else is the machine's.
 */
#ifndef NONO_ABI_H
#define NONO_ABI_H

enum nono_limit {
	NONO_COMM_BYTES = 16,        /* TASK_COMM_LEN */
	NONO_ORIGINS_MAX = 65536,    /* connections between connect(2) and the proxy's accept(2) */
	NONO_ASKERS_MAX = 4096,      /* DNS clients between a query and its answer */
	NONO_DENIAL_PAGES = 16,      /* ring buffer, in pages; a power of two */
	NONO_PORT_WORDS = 1024,      /* a bit for each port, 64 in a word: port P is bit P % 64 of word P / 64 */
};

/* getsockopt(2) on a connection that the proxy accepted: level and name of the private option. */
enum nono_sockopt {
	NONO_SOL = 0x6e6f,           /* no protocol uses this level */
	NONO_SO_ORIGIN = 1,          /* struct nono_origin; reading it forgets it */
};

enum nono_reason {
	NONO_DENY_NOT_SERVED = 1,    /* no proxy is alive to take the connection */
	NONO_DENY_DATAGRAM = 2,      /* a datagram to somewhere else than a resolver */
	NONO_DENY_SOCKET = 3,        /* a kind of socket that no rule can judge */
	NONO_DENY_NO_RECORD = 4,     /* the destination could not be remembered */
	NONO_DENY_DATAGRAM_CONNECT = 5, /* as DATAGRAM, by connect(2): getaddrinfo does that to sort its answers */
};

struct nono_process {
	__u64 cgroup_id;
	__u32 pid;                   /* thread group, initial pid namespace */
	__u32 uid;                   /* initial user namespace */
	char comm[NONO_COMM_BYTES];  /* chosen by the task: hostile */
};

struct nono_destination {
	__u8 addr[16];
	__be16 port_be;
	__u16 protocol;              /* IPPROTO_* of the socket */
	__u32 type;                  /* SOCK_* of the socket */
};

/* In socket storage while the socket lives; published under nono_source for the proxy to take. */
struct nono_origin {
	struct nono_process process;
	struct nono_destination destination;
	__u64 seen_ns;               /* bpf_ktime_get_ns() */
};

/* A connection, as the accepting side sees it: the client's own end, and the listener it came to (two connections of
 * one end may go to two listeners; 0 for a datagram).
 */
struct nono_source {
	__u64 netns_cookie;
	__u8 addr[16];
	__u16 port;
	__u16 listener_port;
	__u32 pad;
};

/* One record of the ring buffer. */
struct nono_denial {
	struct nono_origin origin;
	__u32 reason;                /* enum nono_reason */
	__u32 pad;
};

/* The one entry of the settings array; `alive` is flipped by the supervisor. `opens_ports` is zero when no bit of the
 * map open_ports is set, which is then not looked at.
 */
struct nono_settings {
	__u64 netns_cookie;          /* of the namespace that holds the listeners */
	__u8 own_v4[16];             /* the namespace's own addresses besides loopback */
	__u8 own_v6[16];
	__be16 proxy_port_be;        /* TCP, on 127.0.0.1 and ::1 */
	__be16 dns_port_be;          /* UDP and TCP, on 127.0.0.1 and ::1 */
	__u16 alive;
	__u16 opens_ports;
};

#endif
