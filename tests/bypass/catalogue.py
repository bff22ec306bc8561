"""The known classes of ways around a sandbox's network control, by slug: what each is, and what is right.

A test says with `@pytest.mark.bypass("slug")` which it tries; every class has one. `table.py` shows the results.
"""

from __future__ import annotations

from typing import NamedTuple


class Class(NamedTuple):
    """One way around, and the behaviour that is right."""

    title: str
    right: str


CATALOGUE: dict[str, Class] = {
    # --- what is permitted at all
    "empty-allowlist": Class("an empty list of hosts that means all of them", "nothing is reachable"),
    "allow-everything": Class(
        "a wildcard that lets metadata and the host's own services in", "denied all the same, with a warning"
    ),
    "other-ports": Class("a permitted host on a port that no rule has", "refused"),
    "proxy-variables": Class(
        "clients that ignore the proxy variables, or NO_PROXY", "redirected and judged as any other"
    ),
    "missing-enforcement": Class("a machine that cannot enforce: warn and go on", "the command does not start"),
    "net-classifiers": Class(
        "cgroup v1 net_cls and net_prio, which once switched socket hooks off", "the hooks hold, or no start"
    ),
    # --- TCP
    "ipv4-mapped-ipv6": Class("IPv4 destinations in IPv6 clothes, ::ffff:a.b.c.d", "judged as the IPv4 address"),
    "disconnect-and-reconnect": Class("a judged socket dissolved (AF_UNSPEC) and connected elsewhere", "judged anew"),
    "unspecified-address": Class("0.0.0.0 and :: for loopback", "the sandbox's own loopback; refused by the proxy"),
    "tcp-fast-open": Class("a connection made by sendto, sendmsg or late (TFO)", "redirected and judged"),
    "multipath-tcp": Class("MPTCP and its subflows", "redirected and judged"),
    "io-uring": Class("connects and sockets made by an io_uring", "no ring to be had, or judged"),
    "bound-to-device": Class("SO_BINDTODEVICE, bound sources", "redirected and judged"),
    "routing-options": Class(
        "source routes, IP_TRANSPARENT, SO_MARK, IP_FREEBIND, TCP_REPAIR", "refused, or without effect"
    ),
    "simultaneous-open": Class("simultaneous open; a listener or an accepted socket that connects", "judged"),
    "upper-layer-protocols": Class(
        "TCP turned into something else by TCP_ULP or a protocol number (SMC)", "refused, or judged"
    ),
    "changing-address": Class(
        "a destination that changes in memory while it is judged", "what is judged is what is dialled"
    ),
    "zero-copy": Class("MSG_ZEROCOPY and vectors", "judged"),
    "thread-races": Class("one socket connected by many threads at once", "judged"),
    "child-cgroup": Class("a process in a cgroup below the sandbox's", "judged"),
    "peer-address": Class(
        "getpeername that shows the proxy, so that clients which check fail", "shows what was asked for"
    ),
    "listening-inside": Class("a listener inside that somebody outside fetches from", "unreachable from outside"),
    "own-listeners": Class("our listeners dialled by their own address", "an explicit proxy client, judged"),
    # --- datagrams
    "datagrams": Class("UDP by sendto, connect, sendmsg, sendmmsg, AF_UNSPEC", "EPERM"),
    "quic": Class("QUIC and HTTP/3", "EPERM at once, so that clients take TCP"),
    "mapped-datagrams": Class("UDP to IPv4 in IPv6 clothes", "EPERM"),
    "connected-datagrams": Class("sendto elsewhere on a connected UDP socket", "EPERM"),
    "datagram-options": Class("UDP with control data, source routes, cork, segmentation", "EPERM"),
    "multicast-and-broadcast": Class("groups and broadcast", "EPERM"),
    # --- other sockets
    "raw-sockets": Class("raw sockets and self-made IP headers", "refused"),
    "ping-sockets": Class("ICMP echo with a payload", "refused"),
    "packet-sockets": Class("AF_PACKET frames", "refused"),
    "sctp-dccp-udplite": Class("other transports of the internet family", "refused"),
    "vsock": Class("AF_VSOCK to the hypervisor", "refused"),
    "unusual-families": Class("TIPC, RDS, SMC, KCM, XDP, ALG, Bluetooth, CAN and every other family", "refused"),
    "socketpair-families": Class("socketpair(2) of families that socket(2) refuses", "refused"),
    "netlink": Class("netlink families besides routing; changing routes and links", "refused"),
    "wide-arguments": Class("a family whose upper half slips by a 64-bit comparison", "refused"),
    "other-abis": Class("system calls of another ABI (x32, i386) past the filter", "the process ends"),
    # --- addresses
    "metadata-services": Class("cloud metadata addresses and names", "denied whatever the rules say"),
    "embedded-ipv4": Class(
        "NAT64, 6to4, Teredo, compatible, translated, ISATAP spellings", "judged as the embedded address"
    ),
    "number-spellings": Class("decimal, octal, hexadecimal, short IPv4", "no host, or judged as what it is"),
    "own-addresses": Class("the host's own LAN and global addresses", "denied unless a rule has the port"),
    "host-loopback": Class(
        "services on the host's loopback, by redirect, CONNECT or name",
        "the sandbox's own loopback; denied by the proxy",
    ),
    "rebinding": Class("a permitted name that resolves to metadata, loopback or the host", "every address is judged"),
    "scoped-addresses": Class("link-local addresses and zone ids", "refused"),
    # --- names
    "hostile-host-names": Class(
        "NUL, CR LF, blanks, zone ids, backslashes, userinfo in a host", "refused as malformed"
    ),
    "label-boundary": Class("a suffix without its dot: evilexample.com", "whole labels match"),
    "wildcard-rules": Class("embedded wildcards, the apex under a wildcard", "one leading *. label, below only"),
    "trailing-dot-and-case": Class("a dot at the end, other case, also past a deny rule", "one canonical form"),
    "unicode-names": Class("full-width letters, Unicode dots, homographs", "A-labels only are matched"),
    "shared-addresses": Class("a denied host on a permitted host's address", "judged by name, per connection"),
    "forged-server-name": Class(
        "a permitted server name with the attacker's address", "the name's real address is dialled"
    ),
    "no-server-name": Class("TLS without a server name; CONNECT to a bare address", "judged by the address, denied"),
    "encrypted-client-hello": Class("ECH keys from DNS, ECH with an outer name", "no keys; the outer name is judged"),
    "split-client-hello": Class("a ClientHello over records and segments, GREASE, larger than 16 KiB", "same verdict"),
    "forged-destination-records": Class("a connection for which the kernel has no record", "reset"),
    # --- DNS
    "dns-over-udp": Class("a DNS server of the client's choice", "our resolver answers"),
    "dns-over-tcp": Class("DNS over TCP to a server of the client's choice", "our resolver answers"),
    "encrypted-dns": Class("DoT, DoQ, DoH to public resolvers", "refused: ports and hosts that no rule has"),
    "dns-tunnelling": Class("data in the labels of a denied name", "never forwarded"),
    "resolve-before-policy": Class(
        "a denied name in a request that is resolved all the same", "judged before resolved"
    ),
    "dns-record-types": Class("TXT, NULL, ANY, AXFR of a permitted name", "answered empty, never forwarded"),
    "dns-message-tricks": Class(
        "many questions, further sections, EDNS client subnet, UPDATE, compression loops", "never forwarded"
    ),
    "dns-letter-case": Class("bits in the case of a permitted name", "asked in one case"),
    "dns-reverse": Class("data in reverse names", "never forwarded"),
    # --- HTTP
    "http-host-mismatch": Class(
        "absolute form, Host and CONNECT target that disagree", "judged by what is forwarded, or refused"
    ),
    "http-second-request": Class("a denied host in a later request of a connection", "each request is judged"),
    "http-spelling": Class("requests that only a lenient server takes for such", "judged or refused, never unread"),
    "http-connect-tricks": Class("CONNECT to other ports, addresses, ourselves", "judged"),
    "endpoint-paths": Class(
        "dot segments, escapes and tunnels around a rule for certain paths", "every reading is judged; no tunnel"
    ),
    "session-token": Class("the explicit proxy, by HTTP or SOCKS5, without the sandbox's token", "407, or no tunnel"),
    "http-identity-header": Class("a request that claims another client's identity", "without effect"),
    # --- requests inside TLS
    "request-smuggling": Class(
        "requests inside requests: CL.TE, TE.CL, odd chunks, an upload cut off", "one reading, or refused"
    ),
    "intercepted-names": Class(
        "server name, Host, CONNECT target and later requests that disagree, inside TLS", "421, or no connection"
    ),
    "upstream-certificates": Class(
        "a host with a wrong, expired or unknown certificate, old TLS, or none", "no request, no credential"
    ),
    "service-paths": Class(
        "paths and methods around the rules of a credential's host", "what is judged is what is sent"
    ),
    # --- credentials
    "service-denials": Class("what a rule denies, in another case, or with dots and blanks behind it", "denied"),
    "service-names": Class(
        "other names and addresses of a service's host: loopback's spellings, DNS turned inward",
        "refused, no credential",
    ),
    "service-rate": Class("more requests than a service may be sent, by several roads", "429, nothing more is sent"),
    "unread-bodies": Class(
        "a body that the server leaves unread, with a request in it", "refused, or the last on its connection"
    ),
    "untrue-responses": Class(
        "responses with two ends, or with something behind them, on shared connections",
        "502, or cut off; nobody's answer",
    ),
    "foreign-credentials": Class(
        "a key of the command's own beside the phantom or in its place, in any spelling", "401, nothing is sent"
    ),
    "credential-removal": Class(
        "fields that take the credential out again, redirects that take it elsewhere", "without effect"
    ),
    "credential-echo": Class("a server that repeats the credential, in any part of a response", "covered"),
    "credential-values": Class("a credential with line breaks or control characters in it", "503, nothing is sent"),
    "secrets-at-rest": Class(
        "credentials in environments, memory, files, arguments, logs, messages", "nowhere that the command can see"
    ),
    "broker-killed": Class("the holder of the credentials, or the proxy, dies", "no request is sent"),
    "reverse-services": Class(
        "services of the proxy's port without the phantom, or by another's path", "401; its own requests only"
    ),
    # --- unix sockets and descriptors
    "pathname-sockets": Class("unix sockets of host daemons, docker, D-Bus, agents", "hidden"),
    "late-pathname-sockets": Class("a daemon's socket made while the sandbox runs, outside /run", "refused"),
    "abstract-sockets": Class("abstract unix sockets", "another namespace"),
    "unix-datagrams": Class("unix datagram and seqpacket sockets of host daemons (syslog, notify)", "hidden"),
    "proc-paths": Class("/proc/PID/root, /proc/PID/fd, /proc/PID/cwd to what is hidden", "refused"),
    "uncovered-mounts": Class("bind mounts, overlays and moved mounts that show what is covered", "refused"),
    "scm-rights": Class("a socket of outside, handed over by unix socket", "nobody outside can be reached"),
    "inherited-descriptors": Class("sockets and directories inherited from the caller", "closed, or no start"),
    "handed-over-by-stdin": Class(
        "a descriptor sent over a unix socket that is the standard input", "the caller's own doing"
    ),
    "peer-credentials": Class("SO_PEERCRED, SCM_CREDENTIALS that lie", "refused"),
    "secret-files": Class(
        "the file of a secret: by other names, mounts, handles, and after it has been replaced outside", "hidden"
    ),
    "closed-to-the-account": Class("--allow-socket for what the account may not use", "refused"),
    # --- processes
    "pidfd-getfd": Class("a socket taken from a process of the same account", "refused"),
    "ptrace": Class("ptrace, process_vm_readv, /proc/PID/mem of processes outside", "refused"),
    "signals": Class("signals to the account's processes outside", "out of reach"),
    "keyrings": Class("the account's keys", "no keyrings"),
    "setns": Class("namespaces of the account's own containers, by path, pidfd or handle", "refused"),
    "agents-of-the-account": Class("tmux, ssh-agent, systemd --user: somebody outside who does the work", "hidden"),
    "terminal-injection": Class("TIOCSTI, TIOCLINUX, other terminals", "refused"),
    "audit-forging": Class("the command rewrites what is said about it", "refused"),
    "sudo": Class("a sudoers rule for the sandbox that opens everything", "the caller's own rights"),
    # --- kernel objects
    "uid-0": Class("uid 0 without capabilities: core_pattern, cgroup.procs, /etc", "never uid 0"),
    "set-uid-programs": Class("su, sudo, ping and their like", "no_new_privs"),
    "cgroup-migration": Class(
        "leaving the cgroup: cgroupfs, delegated groups, clone into one", "refused; the namespace stays"
    ),
    "socket-outlives-migration": Class(
        "a socket used after its process has moved to another cgroup", "judged by the socket's group"
    ),
    "bpf-detach": Class("programs detached, replaced or overridden", "refused, by links"),
    "bpf-program-descriptors": Class("an inherited program descriptor", "none is inherited"),
    "bpf-maps": Class("the maps of the hooks read or written", "refused"),
    "bpf-system-call": Class("bpf(2), own programs and links", "refused"),
    "last-descriptor": Class("hooks that vanish with their last descriptor", "pinned"),
    "kernel-interfaces": Class("perf_event_open, userfaultfd, kexec, modules", "refused"),
    "message-queues": Class("POSIX and System V queues and memory shared with the host", "another namespace"),
    "devices": Class("devices that carry packets or keystrokes: tun, vhost, uinput, consoles", "refused"),
    "nested-user-namespace": Class("root in a user namespace of its own", "nothing new is reachable"),
    "nested-network-namespace": Class("a network namespace of its own, raw sockets, veth, tun", "a dead end"),
    "mounted-cgroupfs": Class("cgroupfs, bpffs, sysfs mounted in a user namespace", "shows and gives nothing"),
    "network-file-systems": Class("a mount for which the kernel itself connects (NFS, SMB, 9P)", "refused"),
    "proxy-and-init": Class("the proxy and pid 1 read, traced or entered by the account", "refused"),
    # --- crash
    "proxy-killed": Class("the proxy dies, and somebody takes its port", "every connect is refused"),
    "supervisor-killed": Class("the supervisor dies", "everything inside dies with it"),
    "killed-at-start": Class("killed while it starts", "no process outlives it"),
    "exhaustion": Class("descriptors, memory, queues used up until a check is skipped", "refused; others are served"),
    "adversary": Class("one hostile program that tries them all, also as root of its own namespace", "nothing leaves"),
}
