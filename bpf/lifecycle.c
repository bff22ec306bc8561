/* SPDX-License-Identifier: Apache-2.0
 *
 * sockops, on the sandbox's cgroup: before the SYN leaves, publish the socket's destination under the client's own end.
 * getsockopt, on the proxy's cgroup: the accepting side asks for it there.
 */

/* A flow steered to 127.0.0.1 has an IPv4 source, whatever the family of its socket. */
static __always_inline void own_end(struct bpf_sock_ops *ops, const struct nono_origin *origin, struct nono_source *source)
{
	source->netns_cookie = bpf_get_netns_cookie(ops);
	source->port = ops->local_port;
	source->listener_port = bpf_ntohl(ops->remote_port);
	STORE_END(source->addr, is_v4(origin->destination.addr), ops->local_ip4, ops->local_ip6);
}

/* A connection that never came to be is not read by anyone. One that did is: only the proxy takes its record, since
 * a client may be through with its socket before the proxy accepts.
 */
static __always_inline void drop_unborn(struct bpf_sock_ops *ops, const struct nono_origin *origin)
{
	struct nono_source source = {};

	if (ops->args[0] != BPF_TCP_SYN_SENT || ops->args[1] != BPF_TCP_CLOSE)
		return;
	own_end(ops, origin, &source);
	origins.delete(&source);
}

int lifecycle(struct bpf_sock_ops *ops)
{
	struct nono_source source = {};
	struct nono_origin *origin;
	struct bpf_sock *sk = ops->sk;

	if (ops->op != BPF_SOCK_OPS_TCP_CONNECT_CB && ops->op != BPF_SOCK_OPS_STATE_CB)
		return 0;
	if (!sk)
		return 0;
	origin = sockets.sk_storage_get(sk, 0, 0);
	if (!origin)
		return 0;
	if (ops->op == BPF_SOCK_OPS_STATE_CB) {
		drop_unborn(ops, origin);
		return 0;
	}
	own_end(ops, origin, &source);
	/* When this fails the proxy finds no record of the connection, and resets it. */
	origins.update(&source, origin);
	if (bpf_skc_to_mptcp_sock(sk))
		multipath.update(&source, origin);
	bpf_sock_ops_cb_flags_set(ops, BPF_SOCK_OPS_STATE_CB_FLAG);
	return 0;
}

static __always_inline struct nono_origin *peer_origin(struct bpf_sockopt *ctx, struct nono_source *source)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return 0;
	source->netns_cookie = bpf_get_netns_cookie(ctx);
	source->port = bpf_ntohs(sk->dst_port);
	source->listener_port = sk->src_port;
	STORE_END(source->addr, sk->family == AF_INET, sk->dst_ip4, sk->dst_ip6);
	return origins.lookup(source);
}

/* Both stores through a volatile: clang joins them into one 64-bit store, which the verifier refuses. */
static __always_inline int answer(struct bpf_sockopt *ctx, int bytes)
{
	*(volatile __s32 *)&ctx->optlen = bytes;
	*(volatile __s32 *)&ctx->retval = 0;
	return PROCEED;
}

/* struct sockaddr_in, netfilter's SO_ORIGINAL_DST. */
static __always_inline int answer_sockaddr_in(struct bpf_sockopt *ctx, const struct nono_origin *origin)
{
	__u8 *out = ctx->optval, *end = ctx->optval_end;

	if (out + 16 > end || !is_v4(origin->destination.addr))
		return PROCEED;
	*(__u16 *)out = AF_INET;
	*(__u16 *)(out + 2) = origin->destination.port_be;
	*(__u32 *)(out + 4) = ((__u32 *)origin->destination.addr)[3];
	*(__u64 *)(out + 8) = 0;
	return answer(ctx, 16);
}

/* struct sockaddr_in6, netfilter's IP6T_SO_ORIGINAL_DST. */
static __always_inline int answer_sockaddr_in6(struct bpf_sockopt *ctx, const struct nono_origin *origin)
{
	__u8 *out = ctx->optval, *end = ctx->optval_end;
	__u32 *words = (__u32 *)origin->destination.addr;

	if (out + 28 > end)
		return PROCEED;
	*(__u16 *)out = AF_INET6;
	*(__u16 *)(out + 2) = origin->destination.port_be;
	*(__u32 *)(out + 4) = 0;
	*(__u32 *)(out + 8) = words[0];
	*(__u32 *)(out + 12) = words[1];
	*(__u32 *)(out + 16) = words[2];
	*(__u32 *)(out + 20) = words[3];
	*(__u32 *)(out + 24) = 0;
	return answer(ctx, 28);
}

/* Every path that finds no record leaves the kernel's own answer (ENOPROTOOPT) standing. */
int origin_option(struct bpf_sockopt *ctx)
{
	struct nono_source source = {};
	struct nono_origin *origin;
	bool flow = ctx->level == NONO_SOL && ctx->optname == NONO_SO_ORIGIN;
	bool v4 = ctx->level == SOL_IP && ctx->optname == SO_ORIGINAL_DST;
	bool v6 = ctx->level == SOL_IPV6 && ctx->optname == SO_ORIGINAL_DST;

	if (!flow && !v4 && !v6)
		return PROCEED;
	origin = peer_origin(ctx, &source);
	if (!origin)
		return PROCEED;
	if (v4)
		return answer_sockaddr_in(ctx, origin);
	if (v6)
		return answer_sockaddr_in6(ctx, origin);
	if (ctx->optval + sizeof(*origin) > ctx->optval_end)
		return PROCEED;
	*(struct nono_origin *)ctx->optval = *origin;
	origins.delete(&source);
	return answer(ctx, sizeof(*origin));
}
