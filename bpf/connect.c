/* SPDX-License-Identifier: Apache-2.0
 *
 * connect4/6: where does this connection go? getpeername4/6: what the client asked for, so that clients that check
 * agree. Runs on the sandbox's cgroup, before any route is looked up, in the context of the task that called.
 *
 * Verdicts: LOCAL (the namespace's own loopback, untouched), REDIRECT (to the proxy, as are those ports of loopback that
 * mean the host's; port 53 to our resolver), REFUSE (EPERM; ECONNREFUSED when nobody serves).
 */

static __always_inline bool is_stream(const struct bpf_sock_addr *ctx)
{
	return ctx->type == SOCK_STREAM && (ctx->protocol == TCP || ctx->protocol == MPTCP);
}

static __always_inline bool is_datagram(const struct bpf_sock_addr *ctx)
{
	return ctx->type == SOCK_DGRAM && ctx->protocol == UDP;
}

/* Remember where the socket was going. Failing to is failing the connect: the proxy could not judge it.
 * `again`: the server that is remembered already stays, since for a connected socket the kernel shows sendmsg4 what we
 * made of it.
 */
static __always_inline bool remember(struct bpf_sock_addr *ctx, const struct nono_origin *origin, bool again)
{
	struct bpf_sock *sk = ctx->sk;
	struct nono_origin *kept;

	if (!sk)
		return false;
	kept = sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!kept)
		return false;
	if (again && kept->seen_ns) {
		kept->process = origin->process;
		return true;
	}
	*kept = *origin;
	return true;
}

/* A socket that was redirected before, was disconnected (AF_UNSPEC), and now goes elsewhere. */
static __always_inline void forget(struct bpf_sock_addr *ctx)
{
	if (ctx->sk)
		sockets.sk_storage_delete(ctx->sk);
}

/* Where to steer to: the port (network order) of our listener, 0 to leave the socket alone, or -1 to refuse. */
static __always_inline int steer(struct bpf_sock_addr *ctx, struct nono_origin *origin, bool connecting)
{
	struct nono_settings *set = current_settings();
	bool dns = origin->destination.port_be == bpf_htons(DNS_PORT);
	bool stream = is_stream(ctx);
	bool local, direct, ours;

	fill_process(&origin->process);
	origin->destination.protocol = ctx->protocol;
	origin->destination.type = ctx->type;
	origin->seen_ns = bpf_ktime_get_ns();
	if (!set) {
		report_denial(origin, NONO_DENY_NO_RECORD);
		return -1;
	}
	if (!stream && !is_datagram(ctx)) {
		report_denial(origin, NONO_DENY_SOCKET);
		return -1;
	}
	local = is_local(origin->destination.addr, set);
	/* Who dials a listener of ours by its own address is recorded like the redirected, so that it has an owner. */
	direct = local && origin->destination.port_be == set->dns_port_be;
	dns = dns || direct;
	ours = dns || (stream && origin->destination.port_be == set->proxy_port_be);
	if (local && !ours && !(connecting && stream && is_opened(&origin->destination, set)))
		return 0;
	if (!stream && !dns) {
		report_denial(origin, connecting ? NONO_DENY_DATAGRAM_CONNECT : NONO_DENY_DATAGRAM);
		return -1;
	}
	if (!set->alive) {
		report_denial(origin, NONO_DENY_NOT_SERVED);
		bpf_set_retval(-ECONNREFUSED);
		return -1;
	}
	if (!remember(ctx, origin, direct && !connecting)) {
		report_denial(origin, NONO_DENY_NO_RECORD);
		return -1;
	}
	return dns ? set->dns_port_be : set->proxy_port_be;
}

/* `connecting`: by connect(2), not by sendmsg(2). Only then is a socket that is left alone forgotten: one may ask the
 * resolver and talk to loopback by turns.
 */
static __always_inline int redirect4(struct bpf_sock_addr *ctx, bool connecting)
{
	struct nono_origin origin = {};
	int port_be;

	store_v4(origin.destination.addr, ctx->user_ip4);
	origin.destination.port_be = ctx->user_port;
	port_be = steer(ctx, &origin, connecting);
	if (port_be < 0)
		return REFUSE;
	if (port_be) {
		ctx->user_ip4 = bpf_htonl(0x7f000001);
		ctx->user_port = port_be;
	} else if (connecting) {
		forget(ctx);
	}
	return PROCEED;
}

/* An IPv4-mapped destination stays IPv4: ::1 would break a socket that is bound to a mapped address. */
static __always_inline int redirect6(struct bpf_sock_addr *ctx, bool connecting)
{
	struct nono_origin origin = {};
	bool v4;
	int port_be;

	store_v6(origin.destination.addr, ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]);
	origin.destination.port_be = ctx->user_port;
	port_be = steer(ctx, &origin, connecting);
	if (port_be < 0)
		return REFUSE;
	if (port_be) {
		v4 = is_v4(origin.destination.addr);
		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = v4 ? bpf_htonl(0xffff) : 0;
		ctx->user_ip6[3] = v4 ? bpf_htonl(0x7f000001) : bpf_htonl(1);
		ctx->user_port = port_be;
	} else if (connecting) {
		forget(ctx);
	}
	return PROCEED;
}

int connect4(struct bpf_sock_addr *ctx)
{
	return redirect4(ctx, true);
}

/* IPv4-mapped destinations come here, never to connect4. */
int connect6(struct bpf_sock_addr *ctx)
{
	return redirect6(ctx, true);
}

/* The multipath socket that getpeername sees has no storage; its first subflow, which connected, shares its source. */
static __always_inline struct nono_origin *multipath_origin(struct bpf_sock_addr *ctx)
{
	struct nono_source source = {};
	struct bpf_sock *sk = ctx->sk;

	if (ctx->protocol != MPTCP || !sk)
		return 0;
	source.netns_cookie = bpf_get_netns_cookie(ctx);
	source.port = sk->src_port;
	source.listener_port = bpf_ntohs(ctx->user_port);
	STORE_END(source.addr, sk->family == AF_INET, sk->src_ip4, sk->src_ip6);
	return multipath.lookup(&source);
}

static __always_inline struct nono_origin *asked_for(struct bpf_sock_addr *ctx)
{
	struct nono_origin *origin = 0;

	if (ctx->sk)
		origin = sockets.sk_storage_get(ctx->sk, 0, 0);
	return origin ? origin : multipath_origin(ctx);
}

int getpeername4(struct bpf_sock_addr *ctx)
{
	struct nono_origin *origin = asked_for(ctx);

	if (origin) {
		ctx->user_ip4 = ((__u32 *)origin->destination.addr)[3];
		ctx->user_port = origin->destination.port_be;
	}
	return PROCEED;
}

int getpeername6(struct bpf_sock_addr *ctx)
{
	struct nono_origin *origin = asked_for(ctx);

	if (origin) {
		__u32 *words = (__u32 *)origin->destination.addr;

		ctx->user_ip6[0] = words[0];
		ctx->user_ip6[1] = words[1];
		ctx->user_ip6[2] = words[2];
		ctx->user_ip6[3] = words[3];
		ctx->user_port = origin->destination.port_be;
	}
	return PROCEED;
}
