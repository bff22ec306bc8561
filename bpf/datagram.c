/* SPDX-License-Identifier: Apache-2.0
 *
 * sendmsg4/6: a datagram with an address of its own. To port 53 it goes to our resolver, on loopback it is the
 * sandbox's own affair, elsewhere it is refused (EPERM), so that QUIC clients fall back to TCP at once. The kernel does
 * not call these on a connected socket: connect4/6 has judged that one.
 * recvmsg4/6: the answer is shown to come from the server that was asked.
 * asker4/6, on the proxy's cgroup: whose query did the resolver just receive?
 */

int sendmsg4(struct bpf_sock_addr *ctx)
{
	return redirect4(ctx, false);
}

int sendmsg6(struct bpf_sock_addr *ctx)
{
	return redirect6(ctx, false);
}

/* The server this socket asked, if the datagram that just came in is our resolver's. */
static __always_inline struct nono_origin *asked_server(struct bpf_sock_addr *ctx)
{
	struct nono_settings *set = current_settings();

	if (!set || !ctx->sk || ctx->user_port != set->dns_port_be)
		return 0;
	return sockets.sk_storage_get(ctx->sk, 0, 0);
}

int recvmsg4(struct bpf_sock_addr *ctx)
{
	struct nono_origin *origin;

	if (ctx->user_ip4 != bpf_htonl(0x7f000001))
		return PROCEED;
	origin = asked_server(ctx);
	if (origin) {
		ctx->user_ip4 = ((__u32 *)origin->destination.addr)[3];
		ctx->user_port = origin->destination.port_be;
	}
	return PROCEED;
}

int recvmsg6(struct bpf_sock_addr *ctx)
{
	struct nono_origin *origin;

	if (ctx->user_ip6[3] != bpf_htonl(1) && ctx->user_ip6[3] != bpf_htonl(0x7f000001))
		return PROCEED;
	origin = asked_server(ctx);
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

/* Looks the sender's socket up and copies its owner to where the resolver finds it by the datagram's source. */
static __always_inline void note_asker(struct bpf_sock_addr *ctx, struct bpf_sock_tuple *reply, __u32 reply_bytes,
				       const struct nono_source *source)
{
	struct nono_origin *origin;
	struct bpf_sock *sender = bpf_sk_lookup_udp(ctx, reply, reply_bytes, BPF_F_CURRENT_NETNS, 0);

	/* What an earlier owner of the port left would be a lie. */
	askers.delete((struct nono_source *)source);
	if (!sender)
		return;
	origin = sockets.sk_storage_get(sender, 0, 0);
	if (origin)
		askers.update((struct nono_source *)source, &origin->process);
	bpf_sk_release(sender);
}

/* The proxy also receives datagrams as a client of the host's resolver: those are not on a listener of ours. */
static __always_inline bool on_resolver(struct bpf_sock_addr *ctx, struct nono_settings *set)
{
	return ctx->sk && ctx->sk->src_port == bpf_ntohs(set->dns_port_be) &&
	       bpf_get_netns_cookie(ctx) == set->netns_cookie;
}

int asker4(struct bpf_sock_addr *ctx)
{
	struct nono_settings *set = current_settings();
	struct nono_source source = {};
	struct bpf_sock_tuple reply = {};

	if (!set || !on_resolver(ctx, set))
		return PROCEED;
	source.netns_cookie = set->netns_cookie;
	source.port = bpf_ntohs(ctx->user_port);
	store_v4(source.addr, ctx->user_ip4);
	reply.ipv4.saddr = bpf_htonl(0x7f000001);
	reply.ipv4.sport = set->dns_port_be;
	reply.ipv4.daddr = ctx->user_ip4;
	reply.ipv4.dport = ctx->user_port;
	note_asker(ctx, &reply, sizeof(reply.ipv4), &source);
	return PROCEED;
}

int asker6(struct bpf_sock_addr *ctx)
{
	struct nono_settings *set = current_settings();
	struct nono_source source = {};
	struct bpf_sock_tuple reply = {};
	__u32 *to = (__u32 *)reply.ipv6.daddr;

	if (!set || !on_resolver(ctx, set))
		return PROCEED;
	source.netns_cookie = set->netns_cookie;
	source.port = bpf_ntohs(ctx->user_port);
	store_v6(source.addr, ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]);
	reply.ipv6.saddr[3] = bpf_htonl(1);
	reply.ipv6.sport = set->dns_port_be;
	to[0] = ctx->user_ip6[0];
	to[1] = ctx->user_ip6[1];
	to[2] = ctx->user_ip6[2];
	to[3] = ctx->user_ip6[3];
	reply.ipv6.dport = ctx->user_port;
	note_asker(ctx, &reply, sizeof(reply.ipv6), &source);
	return PROCEED;
}
