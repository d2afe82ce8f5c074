/* Asks for http://127.0.0.1:PORT/ok/uring with io_uring alone: uring PORT */
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *sq, *cq;
static struct io_uring_sqe *entries;
static struct io_uring_params parameters;
static int ring;

static int submit(int operation, int fd, void *buffer, unsigned length) {
	unsigned *tail = (unsigned *)(sq + parameters.sq_off.tail), *array = (unsigned *)(sq + parameters.sq_off.array);
	unsigned mask = *(unsigned *)(sq + parameters.sq_off.ring_mask), at = *tail & mask;
	memset(&entries[at], 0, sizeof entries[at]);
	entries[at].opcode = operation;
	entries[at].fd = fd;
	entries[at].addr = (unsigned long)buffer;
	entries[at].len = length;
	array[at] = at;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0) {
		perror("io_uring_enter");
		exit(1);
	}
	unsigned *head = (unsigned *)(cq + parameters.cq_off.head);
	struct io_uring_cqe *done = (struct io_uring_cqe *)(cq + parameters.cq_off.cqes);
	int result = done[*head & *(unsigned *)(cq + parameters.cq_off.ring_mask)].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

int main(int count, char **words) {
	if (count != 2)
		return 2;
	ring = syscall(SYS_io_uring_setup, 8, &parameters);
	if (ring < 0) {
		perror("io_uring_setup");
		return 3;
	}
	sq = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
	cq = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
	entries = mmap(0, 8 * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
	struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&server, sizeof server))
		return 4;
	static char request[] = "GET /ok/uring HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", answer[4096];
	if (submit(IORING_OP_SEND, fd, request, sizeof request - 1) != sizeof request - 1)
		return 5;
	while (submit(IORING_OP_RECV, fd, answer, sizeof answer) > 0) {
	}
	return 0;
}
