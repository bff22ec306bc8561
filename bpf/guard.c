/* SPDX-License-Identifier: Apache-2.0
 *
 * sock_create: of the internet families a sandbox opens TCP (also multipath) and UDP sockets, nothing else: raw, ping,
 * SCTP, DCCP and UDP-Lite sockets have no connect that the other hooks could judge. The kernel runs this hook for
 * AF_INET and AF_INET6 only.
 */
int sock_create(struct bpf_sock *sk)
{
	struct nono_origin origin = {};

	if (sk->type == SOCK_STREAM && (sk->protocol == TCP || sk->protocol == MPTCP))
		return PROCEED;
	if (sk->type == SOCK_DGRAM && sk->protocol == UDP)
		return PROCEED;
	fill_process(&origin.process);
	origin.destination.protocol = sk->protocol;
	origin.destination.type = sk->type;
	origin.seen_ns = bpf_ktime_get_ns();
	report_denial(&origin, NONO_DENY_SOCKET);
	return REFUSE;
}
