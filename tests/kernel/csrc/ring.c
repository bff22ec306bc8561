/* Connects through io_uring with raw system calls: IORING_OP_SOCKET, IORING_OP_CONNECT, then ordinary send and recv.
 * usage: ring ADDRESS PORT PAYLOAD. Prints one JSON object, as probes.py does.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ENTRIES 4

struct ring {
	int fd;
	unsigned *sq_tail, *sq_array, *cq_head, *cq_tail;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

static void fail(const char *at, int error)
{
	printf("{\"error\": \"%s\", \"at\": \"%s\"}\n", strerrorname_np(error), at);
	exit(0);
}

static void *map(int fd, size_t bytes, off_t what)
{
	void *at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, what);

	if (at == MAP_FAILED)
		fail("mmap", errno);
	return at;
}

static void open_ring(struct ring *ring)
{
	struct io_uring_params params = {0};
	char *sq, *cq;

	ring->fd = syscall(__NR_io_uring_setup, ENTRIES, &params);
	if (ring->fd < 0)
		fail("io_uring_setup", errno);
	sq = map(ring->fd, params.sq_off.array + params.sq_entries * sizeof(unsigned), IORING_OFF_SQ_RING);
	cq = map(ring->fd, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe), IORING_OFF_CQ_RING);
	ring->sqes = map(ring->fd, params.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
	ring->sq_tail = (unsigned *)(sq + params.sq_off.tail);
	ring->sq_array = (unsigned *)(sq + params.sq_off.array);
	ring->cq_head = (unsigned *)(cq + params.cq_off.head);
	ring->cq_tail = (unsigned *)(cq + params.cq_off.tail);
	ring->cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
}

/* Submit one operation and wait for it: its result, or -errno. One is in flight at a time, so slot 0 is free. */
static int complete(struct ring *ring, const struct io_uring_sqe *sqe)
{
	unsigned tail = *ring->sq_tail;
	int result;

	ring->sqes[0] = *sqe;
	ring->sq_array[tail % ENTRIES] = 0;
	__atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0)
		fail("io_uring_enter", errno);
	result = ring->cqes[*ring->cq_head % (2 * ENTRIES)].res;
	__atomic_store_n(ring->cq_head, *ring->cq_head + 1, __ATOMIC_RELEASE);
	return result;
}

/* The peer's address as text, and its port. */
static int name_peer(int fd, char *text)
{
	struct sockaddr_storage peer = {0};
	socklen_t bytes = sizeof(peer);
	struct sockaddr_in6 *v6 = (void *)&peer;
	struct sockaddr_in *v4 = (void *)&peer;
	const void *address = &v4->sin_addr;

	if (getpeername(fd, (struct sockaddr *)&peer, &bytes))
		fail("getpeername", errno);
	if (peer.ss_family == AF_INET6)
		address = &v6->sin6_addr;
	inet_ntop(peer.ss_family, address, text, INET6_ADDRSTRLEN);
	return ntohs(v4->sin_port);
}

int main(int argc, char **argv)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
	struct io_uring_sqe sqe = {.opcode = IORING_OP_SOCKET, .off = SOCK_STREAM};
	struct ring ring;
	char reply[200], peer[INET6_ADDRSTRLEN];
	int fd, result, got, is_v6, port;

	if (argc != 4)
		return 2;
	prctl(PR_SET_NAME, "probe-io_uring");
	is_v6 = inet_pton(AF_INET6, argv[1], &v6.sin6_addr);
	inet_pton(AF_INET, argv[1], &v4.sin_addr);
	v4.sin_port = v6.sin6_port = htons(atoi(argv[2]));
	open_ring(&ring);
	sqe.fd = is_v6 ? AF_INET6 : AF_INET;
	fd = complete(&ring, &sqe);
	if (fd < 0)
		fail("socket", -fd);
	memset(&sqe, 0, sizeof(sqe));
	sqe.opcode = IORING_OP_CONNECT;
	sqe.fd = fd;
	sqe.addr = (unsigned long)(is_v6 ? (void *)&v6 : (void *)&v4);
	sqe.off = is_v6 ? sizeof(v6) : sizeof(v4);
	result = complete(&ring, &sqe);
	if (result < 0)
		fail("connect", -result);
	port = name_peer(fd, peer);
	if (send(fd, argv[3], strlen(argv[3]), MSG_NOSIGNAL) < 0 || shutdown(fd, SHUT_WR))
		fail("send", errno);
	got = recv(fd, reply, sizeof(reply) - 1, MSG_WAITALL);
	if (got < 0)
		fail("recv", errno);
	reply[strcspn(reply, "\n")] = reply[got] = 0;
	printf("{\"peer\": [\"%s\", %d], \"reply\": \"%s\"}\n", peer, port, reply);
	return 0;
}
