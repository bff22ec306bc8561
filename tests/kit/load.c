/* SPDX-License-Identifier: Apache-2.0
 *
 * Both ends of a load test. A connection carries: id (8 bytes), length (8 bytes), then `length` bytes of a pattern that
 * the id determines. The server checks them as they come and sends every byte back; at the end of the stream it adds its
 * own checksum of all it has received (8 bytes, FNV-1a). The client checks every byte of both. Machine byte order: both
 * ends run on one machine.
 *
 *   load server PORT
 *     stdin "wait N": hold the first N connections open together before any byte is read; "stats": a JSON line
 *   load client ADDRESS PORT
 *     stdin "concurrent COUNT FIRST_ID BYTES", "sequential COUNT FIRST_ID BYTES": a JSON line when all are done.
 *     A connection has 1 to BYTES bytes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD = 16, TAIL = 8, CHUNK = 65536, ID_MAX = 1 << 20, EVENTS = 256, PATIENCE_MS = 50000 };

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	return x ^ x >> 33;
}

/* Byte `at` of the stream of connection `id`, head included. The id's top byte is 0xff: neither TLS nor HTTP. */
static uint8_t stream_byte(uint64_t id, uint64_t length, uint64_t at)
{
	uint64_t word = at < 8 ? (id << 8 | 0xff) : at < HEAD ? length : mix(id << 32 ^ at / 8);

	return word >> at % 8 * 8;
}

static uint64_t length_of(uint64_t id, uint64_t most)
{
	return 1 + mix(id) % most;
}

static uint64_t fnv(uint64_t sum, const uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++)
		sum = (sum ^ bytes[i]) * 0x100000001b3ULL;
	return sum;
}

#define FNV_START 0xcbf29ce484222325ULL

struct end {
	int fd;
	uint64_t id, length, sent, received, sum;
	uint8_t head[HEAD], tail[TAIL];
	uint8_t *held;           /* server: read, not yet sent back */
	size_t held_at, held_count;
	uint32_t watching;
	bool eof, counted;
};

static int poll_fd;

static void watch(struct end *end, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = end };

	if (end->watching == events)
		return;
	if (epoll_ctl(poll_fd, end->watching ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, end->fd, &event))
		die("epoll_ctl");
	end->watching = events;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* ---- server */

static struct { uint64_t accepted, finished, open, peak, bytes, wrong, twice, broken; } stats;
static uint8_t *ids_seen;
static struct end *waiting[ID_MAX];
static uint64_t waiting_count, wait_for;

static void server_close(struct end *end)
{
	close(end->fd);
	free(end->held);
	free(end);
	stats.open--;
}

static void server_take(struct end *end, const uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++, end->received++) {
		if (end->received < HEAD)
			end->head[end->received] = bytes[i];
		if (end->received == HEAD - 1) {
			memcpy(&end->id, end->head, 8);
			memcpy(&end->length, end->head + 8, 8);
			stats.wrong += (end->id & 0xff) != 0xff;
			end->id >>= 8;
			if (end->id < ID_MAX)
				stats.twice += ids_seen[end->id]++ > 0;
		}
		if (end->received >= HEAD)
			stats.wrong += bytes[i] != stream_byte(end->id, end->length, end->received);
	}
	end->sum = fnv(end->sum, bytes, count);
	stats.bytes += count;
}

/* True when the end is closed. */
static bool server_fill(struct end *end)
{
	ssize_t got = recv(end->fd, end->held, CHUNK, 0);

	if (got < 0 && errno == EAGAIN)
		return false;
	if (got < 0) {
		stats.broken++;
		server_close(end);
		return true;
	}
	end->held_at = 0;
	if (got) {
		server_take(end, end->held, got);
		end->held_count = got;
		return false;
	}
	end->eof = true;
	stats.wrong += end->received != HEAD + end->length;
	memcpy(end->held, &end->sum, TAIL);
	end->held_count = TAIL;
	return false;
}

static void server_step(struct end *end)
{
	if (!end->held_count && server_fill(end))
		return;
	while (end->held_count) {
		ssize_t put = send(end->fd, end->held + end->held_at, end->held_count, MSG_NOSIGNAL);

		if (put < 0 && errno == EAGAIN) {
			watch(end, EPOLLOUT);
			return;
		}
		if (put < 0) {
			stats.broken++;
			server_close(end);
			return;
		}
		end->held_at += put;
		end->held_count -= put;
	}
	if (end->eof) {
		stats.finished++;
		server_close(end);
		return;
	}
	watch(end, EPOLLIN);
}

static void server_accept(int listener)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		struct end *end = calloc(1, sizeof(*end));

		end->fd = fd;
		end->sum = FNV_START;
		end->held = malloc(CHUNK);
		stats.accepted++;
		if (++stats.open > stats.peak)
			stats.peak = stats.open;
		if (!wait_for) {
			watch(end, EPOLLIN);
			continue;
		}
		waiting[waiting_count++] = end;
		if (waiting_count == wait_for) {
			for (uint64_t i = 0; i < waiting_count; i++)
				watch(waiting[i], EPOLLIN);
			wait_for = waiting_count = 0;
		}
	}
}

static void server_obey(void)
{
	char line[64];

	if (!fgets(line, sizeof(line), stdin))
		exit(0);
	if (sscanf(line, "wait %lu", &wait_for) == 1)
		stats.peak = stats.open;
	else
		printf("{\"accepted\":%lu,\"finished\":%lu,\"open\":%lu,\"peak\":%lu,\"bytes\":%lu,\"wrong\":%lu,"
		       "\"twice\":%lu,\"broken\":%lu}\n",
		       stats.accepted, stats.finished, stats.open, stats.peak, stats.bytes, stats.wrong, stats.twice,
		       stats.broken);
	if (line[0] == 'w')
		puts("{}");
}

static void serve(int port)
{
	struct sockaddr_in6 here = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
	struct end own = { .fd = listener }, orders = { .fd = 0 };
	struct epoll_event events[EVENTS];

	ids_seen = calloc(ID_MAX, 1);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&here, sizeof(here)) || listen(listener, 4096))
		die("listen");
	watch(&own, EPOLLIN);
	watch(&orders, EPOLLIN);
	puts("{}");
	for (;;) {
		int count = epoll_wait(poll_fd, events, EVENTS, -1);

		for (int i = 0; i < count; i++) {
			struct end *end = events[i].data.ptr;

			if (end == &own)
				server_accept(listener);
			else if (end == &orders)
				server_obey();
			else
				server_step(end);
		}
	}
}

/* ---- client */

static struct { uint64_t good, wrong, lost, bytes; char first[128]; } result;
static struct sockaddr_storage far;
static socklen_t far_size;

static void fail(struct end *end, const char *what, uint64_t *counter)
{
	if (!result.first[0])
		snprintf(result.first, sizeof(result.first), "connection %lu: %s (%s), sent %lu, received %lu of %lu",
			 end->id, what, errno ? strerror(errno) : "no errno", end->sent, end->received,
			 HEAD + end->length + TAIL);
	++*counter;
}

static bool client_open(struct end *end, uint64_t id, uint64_t most)
{
	*end = (struct end){ .id = id, .length = length_of(id, most), .sum = FNV_START };
	end->fd = socket(far.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (end->fd < 0)
		die("socket");
	if (connect(end->fd, (struct sockaddr *)&far, far_size) && errno != EINPROGRESS) {
		fail(end, "connect", &result.lost);
		close(end->fd);
		return false;
	}
	watch(end, EPOLLIN | EPOLLOUT);
	return true;
}

/* False when the connection has failed. */
static bool client_send(struct end *end)
{
	uint8_t chunk[CHUNK];
	uint64_t total = HEAD + end->length;

	while (end->sent < total) {
		size_t count = total - end->sent < CHUNK ? total - end->sent : CHUNK;
		ssize_t put;

		for (size_t i = 0; i < count; i++)
			chunk[i] = stream_byte(end->id, end->length, end->sent + i);
		put = send(end->fd, chunk, count, MSG_NOSIGNAL);
		if (put < 0)
			return errno == EAGAIN;
		end->sum = fnv(end->sum, chunk, put);
		end->sent += put;
	}
	if (end->watching & EPOLLOUT) {
		shutdown(end->fd, SHUT_WR);
		watch(end, EPOLLIN);
	}
	return true;
}

static bool client_right(struct end *end, const uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++, end->received++) {
		uint64_t at = end->received, echoed = HEAD + end->length;

		if (at >= echoed + TAIL)
			return false;
		if (at >= echoed)
			end->tail[at - echoed] = bytes[i];
		else if (bytes[i] != stream_byte(end->id, end->length, at))
			return false;
	}
	return true;
}

/* 1: done, -1: failed, 0: to be continued. */
static int client_receive(struct end *end)
{
	static uint8_t chunk[CHUNK];
	ssize_t got;

	while ((got = recv(end->fd, chunk, CHUNK, 0)) > 0)
		if (errno = 0, !client_right(end, chunk, got)) {
			fail(end, "a wrong byte", &result.wrong);
			return -1;
		}
	if (got < 0 && errno == EAGAIN)
		return 0;
	if (got < 0 || end->received != HEAD + end->length + TAIL) {
		if (!got)
			errno = 0;
		fail(end, "cut short", &result.lost);
		return -1;
	}
	if (memcmp(end->tail, &end->sum, TAIL)) {
		fail(end, "the server received something else", &result.wrong);
		return -1;
	}
	result.good++;
	result.bytes += 2 * (HEAD + end->length);
	return 1;
}

/* `count` connections, all open together or one after the other. */
static void run(uint64_t count, uint64_t first, uint64_t most, bool together)
{
	uint64_t opened = 0, live = 0, width = together ? count : 1;
	struct end *ends = calloc(count, sizeof(*ends));
	struct epoll_event events[EVENTS];
	double begun = now(), slowest = 0, last = begun;

	memset(&result, 0, sizeof(result));
	while (opened < count || live) {
		while (opened < count && live < width) {
			live += client_open(&ends[opened], first + opened, most);
			opened++;
		}
		int ready = live ? epoll_wait(poll_fd, events, EVENTS, PATIENCE_MS) : 0;
		if (live && !ready) {
			result.lost += live;
			snprintf(result.first, sizeof(result.first), "%lu connections hang", live);
			break;
		}
		for (int i = 0; i < ready; i++) {
			struct end *end = events[i].data.ptr;
			int state = 0;

			if (events[i].events & EPOLLOUT && !client_send(end)) {
				fail(end, "send", &result.lost);
				state = -1;
			}
			if (!state && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
				state = client_receive(end);
			if (state) {
				close(end->fd);
				live--;
				if (now() - last > slowest)
					slowest = now() - last;
				last = now();
			}
		}
	}
	free(ends);
	printf("{\"good\":%lu,\"wrong\":%lu,\"lost\":%lu,\"bytes\":%lu,\"seconds\":%.3f,\"slowest\":%.3f,\"problem\":\"%s\"}\n",
	       result.good, result.wrong, result.lost, result.bytes, now() - begun, slowest, result.first);
}

static void obey(const char *address, int port)
{
	struct sockaddr_in *v4 = (void *)&far;
	struct sockaddr_in6 *v6 = (void *)&far;
	char line[128], how[16];
	uint64_t count, first, most;

	if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
		far.ss_family = AF_INET;
		v4->sin_port = htons(port);
		far_size = sizeof(*v4);
	} else if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
		far.ss_family = AF_INET6;
		v6->sin6_port = htons(port);
		far_size = sizeof(*v6);
	} else {
		exit(2);
	}
	puts("{}");
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "%15s %lu %lu %lu", how, &count, &first, &most) != 4)
			exit(2);
		run(count, first, most, how[0] == 'c');
	}
}

int main(int argc, char **argv)
{
	struct rlimit files;

	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	setvbuf(stdout, NULL, _IOLBF, 0);
	setvbuf(stdin, NULL, _IONBF, 0);
	poll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (argc == 3 && !strcmp(argv[1], "server"))
		serve(atoi(argv[2]));
	else if (argc == 4 && !strcmp(argv[1], "client"))
		obey(argv[2], atoi(argv[3]));
	else
		return 2;
	return 0;
}
