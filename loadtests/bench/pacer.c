/* An open, constant-rate load: requests leave when they are due, whether or not earlier ones were answered, and each
   latency counts from when its request was due:

       pacer PORT RATE SECONDS QUESTIONS

   sends the lines of the file QUESTIONS as bodies, and prints {"requests", "errors", "p50", "p99", "p99.9", "worst" (ms)}.
   A request that is due while all connections wait is sent by the first that is free, and has waited meanwhile.

   In C, because it shares the processors with what it measures: of two cores that 12,500 requests a second kept busy,
   the same in Python took 0.4. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS = 64, MOST_BYTES = 1 << 17 };
static const double PATIENCE_S = 5, LOOK_S = 0.05;
static const char PATH[] = "/api/v1/price";

typedef struct {
    int fd, asked; /* asked: an answer is to come */
    double due;
    size_t received;
    char answer[MOST_BYTES + 1];
} Connection;

typedef struct {
    char *bytes;
    size_t length;
} Request;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void *room(void *old, size_t size) {
    void *made = realloc(old, size);
    if (!made) err(1, "no memory for %zu bytes", size);
    return made;
}

static size_t read_requests(const char *path, Request **requests) {
    FILE *file = fopen(path, "r");
    if (!file) err(1, "%s", path);
    char *line = NULL;
    size_t count = 0, capacity = 0, size = 0;
    for (ssize_t length; (length = getline(&line, &size, file)) > 0;) {
        length -= line[length - 1] == '\n';
        if (count == capacity) *requests = room(*requests, (capacity = 2 * capacity + 64) * sizeof **requests);
        int made = asprintf(&(*requests)[count].bytes,
                            "POST %s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
                            "Content-Length: %zd\r\n\r\n%.*s",
                            PATH, length, (int)length, line);
        if (made < 0) err(1, "no memory for a request");
        (*requests)[count++].length = made;
    }
    free(line);
    fclose(file);
    if (!count) errx(1, "%s asks nothing", path);
    return count;
}

static int connected(int port) {
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0 || connect(fd, (void *)&server, sizeof server)) err(1, "port %d", port);
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one)) err(1, "TCP_NODELAY");
    return fd;
}

/* Whether all of the answer is there; its body is as long as Content-Length says. */
static int whole(const Connection *connection) {
    const char *end = strstr(connection->answer, "\r\n\r\n"), *named = strcasestr(connection->answer, "\r\ncontent-length:");
    if (!end) return 0;
    if (!named || named > end) errx(1, "an answer without its length:\n%s", connection->answer);
    size_t expected = end + 4 - connection->answer + strtoul(named + strlen("\r\ncontent-length:"), NULL, 10);
    if (connection->received > expected) errx(1, "more than an answer:\n%s", connection->answer);
    return connection->received == expected;
}

static int by_size(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

int main(int count, char **said) {
    if (count != 5) errx(1, "usage: pacer PORT RATE SECONDS QUESTIONS");
    double rate = atof(said[2]), seconds = atof(said[3]);
    Request *requests = NULL;
    size_t questions = read_requests(said[4], &requests), total = rate * seconds, sent = 0, answered = 0, refused = 0;
    if (!total) errx(1, "nothing to send in %g s at %g a second", seconds, rate);
    double *latencies = room(NULL, total * sizeof *latencies);
    Connection *connections = room(NULL, CONNECTIONS * sizeof *connections), *idle[CONNECTIONS];
    size_t waiting = 0, first = 0; /* `idle` is a ring: whoever has been idle for longest is next */
    int poll = epoll_create1(EPOLL_CLOEXEC), clock = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    struct epoll_event tick = {.events = EPOLLIN, .data.ptr = NULL};
    if (poll < 0 || clock < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, clock, &tick)) err(1, "epoll");
    prctl(PR_SET_TIMERSLACK, 1UL);
    for (; waiting < CONNECTIONS; waiting++) {
        Connection *made = idle[waiting] = &connections[waiting];
        *made = (Connection){.fd = connected(atoi(said[1]))};
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = made};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, made->fd, &event)) err(1, "epoll");
    }
    double began = now() + 0.05, deadline = began + seconds + PATIENCE_S;
    while (answered < total && now() < deadline) {
        for (double time = now(); sent < total && waiting && began + sent / rate <= time; sent++) {
            Connection *next = idle[first];
            Request *request = &requests[sent % questions];
            first = (first + 1) % CONNECTIONS, waiting--;
            next->due = began + sent / rate, next->received = 0, next->asked = 1;
            if (send(next->fd, request->bytes, request->length, MSG_NOSIGNAL) != (ssize_t)request->length) err(1, "send");
        }
        double rest = sent < total && waiting ? began + sent / rate - now() : LOOK_S;
        long ns = rest <= 0 ? 1 : rest < LOOK_S ? rest * 1e9 + 1 : LOOK_S * 1e9; /* 0 would be never */
        if (timerfd_settime(clock, 0, &(struct itimerspec){.it_value.tv_nsec = ns}, NULL)) err(1, "timer");
        struct epoll_event events[CONNECTIONS + 1];
        int ready = epoll_wait(poll, events, CONNECTIONS + 1, -1);
        if (ready < 0 && errno != EINTR) err(1, "epoll");
        for (int n = 0; n < ready; n++) {
            Connection *this = events[n].data.ptr;
            if (!this) continue; /* it is time for the next request: setting the clock again clears it */
            ssize_t length = recv(this->fd, this->answer + this->received, MOST_BYTES - this->received, 0);
            if (length <= 0) errx(1, "the server closed a connection, or answers with more than %d bytes", MOST_BYTES);
            if (!this->asked) errx(1, "an answer that nobody asked for");
            this->answer[this->received += length] = 0;
            if (!whole(this)) continue;
            latencies[answered++] = now() - this->due;
            refused += strncmp(this->answer, "HTTP/1.1 200", 12) != 0;
            this->asked = 0;
            idle[(first + waiting++) % CONNECTIONS] = this;
        }
    }
    qsort(latencies, answered, sizeof *latencies, by_size);
    if (!answered) errx(1, "no request was answered");
    printf("{\"requests\": %zu, \"errors\": %zu", total, refused + total - answered); /* the rest was never answered */
    const struct { const char *name; double share; } shares[] = {{"p50", 0.5}, {"p99", 0.99}, {"p99.9", 0.999}};
    for (size_t n = 0; n < sizeof shares / sizeof *shares; n++)
        printf(", \"%s\": %.3f", shares[n].name, latencies[(size_t)(shares[n].share * answered)] * 1000);
    printf(", \"worst\": %.3f}\n", latencies[answered - 1] * 1000);
    return 0;
}
