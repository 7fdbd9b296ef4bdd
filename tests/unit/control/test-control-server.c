/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests for control/control-server.c: framing, order, clients that misbehave, bounds.
 *
 * One thread is server and clients: whoever waits for a reply runs the queue meanwhile.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "control/control-server.h"
#include "fake-pool.h"
#include "thinpoold/control.h"
#include "util/clock.h"

#define ANSWER_USEC 30000000u /* under sanitizers, on a busy machine */
#define RECLAIM "{\"method\": \"org.thinpoold.Reclaim\"}"
#define LIST "{\"method\": \"org.thinpoold.List\"}"
#define STATUS "{\"method\": \"org.thinpoold.GetStatus\"}"
#define CREATE(name) \
	"{\"method\": \"org.thinpoold.Create\", \"parameters\": {\"name\": \"" name \
	"\", \"size\": 4096}}"

static struct {
	struct pool *pool;
	struct io_queue *q;
	struct pressure *pressure;
	struct control_service service; /* of GetStatus only */
	struct control_server *server;
	char directory[64], path[96];
	int nr_fds; /* open before the test */
} bench;

static int count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int nr = 0;

	while (d && readdir(d))
		nr++;
	if (d)
		closedir(d);
	return nr;
}

static const char *fake_transport(void *ctx)
{
	(void)ctx;
	return "pigeons";
}

static void start_server(void)
{
	struct tp_error error = { "" };

	bench.service.transport = fake_transport;
	if (control_server_create(bench.q, bench.pool, bench.pressure, &bench.service, bench.path,
				  &bench.server, &error))
		fail_msg("%s", error.text);
}

static int set_up(void **state)
{
	const struct pool_options options = { .read_only = false };
	const struct pressure_options pressure_options = { .enabled = { [PRESSURE_REQUEST] =
										true } };

	(void)state;
	if (io_queue_self(&bench.q))
		return -1;
	bench.nr_fds = count_fds();
	snprintf(bench.directory, sizeof(bench.directory), "/tmp/test-control-XXXXXX");
	if (!mkdtemp(bench.directory) || pool_open(&options, &bench.pool, NULL) ||
	    pressure_start(&pressure_options, &bench.pressure))
		return -1;
	snprintf(bench.path, sizeof(bench.path), "%s/socket", bench.directory);
	start_server();
	return 0;
}

/* Nothing is left: no socket in the directory, no descriptor. */
static int tear_down(void **state)
{
	(void)state;
	bench.server = control_server_destroy(bench.server);
	bench.pressure = pressure_destroy(bench.pressure);
	pool_close(bench.pool);
	if (rmdir(bench.directory))
		return -1;
	return count_fds() == bench.nr_fds ? 0 : -1;
}

/* ---- clients ---- */

static int try_connect(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	assert_true(fd >= 0);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", bench.path);
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		int r = -errno;

		close(fd);
		return r;
	}
	return fd;
}

static int new_client(void)
{
	int fd = try_connect();

	while (fd == -EAGAIN) {
		io_queue_run(bench.q, 1000);
		fd = try_connect();
	}
	assert_true(fd >= 0);
	return fd;
}

/* Returns how many bytes went out; fewer when the server closed. */
static size_t send_bytes(int fd, const char *bytes, size_t len)
{
	uint64_t end = time_monotonic_usec() + ANSWER_USEC;
	size_t done = 0;

	while (done < len) {
		ssize_t n = send(fd, bytes + done, len - done, MSG_NOSIGNAL);

		if (n < 0 && errno != EAGAIN)
			break;
		if (n > 0)
			done += (size_t)n;
		else
			io_queue_run(bench.q, 1000);
		assert_true(time_monotonic_usec() < end);
	}
	return done;
}

static void send_call(int fd, const char *call)
{
	assert_int_equal(send_bytes(fd, call, strlen(call) + 1), strlen(call) + 1);
}

/* One reply, without reading beyond it; NULL: the server closed.  To be freed. */
static char *receive(int fd)
{
	uint64_t end = time_monotonic_usec() + ANSWER_USEC;
	size_t len = 0, room = 256;
	char *text = malloc(room);

	for (;;) {
		ssize_t n = recv(fd, text + len, room - len, MSG_PEEK);
		char *nul;

		if (n < 0 && errno == EAGAIN) {
			assert_true(time_monotonic_usec() < end);
			io_queue_run(bench.q, 1000);
			continue;
		}
		if (n <= 0) {
			free(text);
			return NULL;
		}
		nul = memchr(text + len, '\0', (size_t)n);
		if (nul)
			n = nul + 1 - (text + len);
		assert_int_equal(recv(fd, text + len, (size_t)n, 0), n);
		if (nul)
			return text;
		len += (size_t)n;
		if (len == room) {
			text = realloc(text, room *= 2);
			assert_non_null(text);
		}
	}
}

static void expect(int fd, const char *part)
{
	char *text = receive(fd);

	assert_non_null(text);
	if (!strstr(text, part))
		fail_msg("\"%s\" is not in %s", part, text);
	free(text);
}

static void expect_closed(int fd)
{
	char *text = receive(fd);

	assert_null(text);
	close(fd);
}

static void assert_served(int fd)
{
	send_call(fd, LIST);
	expect(fd, "\"volumes\"");
}

static unsigned nr_volumes(void)
{
	struct fake_pool_counts counts;

	fake_pool_get_counts(bench.pool, &counts);
	return counts.volumes;
}

/* ---- calls ---- */

static void calls_are_answered(void **state)
{
	int fd = new_client();

	(void)state;
	send_call(fd, CREATE("v"));
	expect(fd, "{\"parameters\":{\"id\":0}}");
	send_call(fd, CREATE("v"));
	expect(fd, "\"org.thinpoold.Exists\"");
	send_call(fd, LIST);
	expect(fd, "\"name\":\"v\"");
	send_call(fd, STATUS);
	expect(fd, "\"data_total\":17179869184");
	close(fd);
}

static void several_calls_in_one_write_are_answered_in_order(void **state)
{
	static const char calls[] =
		CREATE("a") "\0" LIST "\0" CREATE("a") "\0" STATUS "\0" CREATE("b");
	int fd = new_client();

	(void)state;
	fake_pool_hold_commands(bench.pool, true);
	assert_int_equal(send_bytes(fd, calls, sizeof(calls)), sizeof(calls));
	for (int i = 0; i < 10; i++)
		io_queue_run(bench.q, 1000);
	assert_int_equal(recv(fd, (char[1]){ 0 }, 1, MSG_PEEK), -1);
	fake_pool_hold_commands(bench.pool, false);
	expect(fd, "\"id\":0");
	expect(fd, "\"name\":\"a\"");
	expect(fd, "\"org.thinpoold.Exists\"");
	expect(fd, "\"mode\"");
	expect(fd, "\"id\":1");
	close(fd);
}

static void a_call_in_pieces_is_one_call(void **state)
{
	static const char call[] = CREATE("v");
	int fd = new_client(), other = new_client();

	(void)state;
	for (size_t i = 0; i < sizeof(call); i++) {
		assert_int_equal(send_bytes(fd, call + i, 1), 1);
		io_queue_run(bench.q, 0);
		if (i == sizeof(call) / 2)
			assert_served(other); /* a slow one is in nobody's way */
	}
	expect(fd, "\"id\":0");
	close(fd);
	close(other);
}

static void half_a_call_is_no_call(void **state)
{
	static const char call[] = CREATE("v");
	int fd = new_client(), other = new_client();

	(void)state;
	assert_int_equal(send_bytes(fd, call, sizeof(call) - 1), sizeof(call) - 1); /* no NUL */
	close(fd);
	assert_served(other);
	assert_int_equal(nr_volumes(), 0);
	close(other);
}

static void what_is_no_json_is_answered_and_the_connection_goes_on(void **state)
{
	static const char *const texts[] = { "",
					     " ",
					     "hello",
					     "{",
					     "[]",
					     "7",
					     "null",
					     "\xff",
					     "{\"a\":\"\xc3\"}",
					     "{\"\xc3\xa9zzzzzzzzzzzzzzzzzz\xc3\xa9",
					     "{} {}",
					     "{\"method\":\"a\",\"method\":\"b\"}",
					     "{\"method\":\"a\\u0000\"}",
					     "{\"method\":99999999999999999999999}" };
	int fd = new_client();

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		send_call(fd, texts[i]);
		expect(fd, "\"org.thinpoold.Failed\"");
	}
	assert_served(fd);
	close(fd);
}

static void deep_nesting_is_refused(void **state)
{
	static char deep[60000];
	int fd = new_client();

	(void)state;
	memset(deep, '[', sizeof(deep) - 1);
	send_call(fd, deep);
	expect(fd, "\"org.thinpoold.Failed\"");
	for (size_t i = 0; i + 6 < sizeof(deep); i += 5)
		memcpy(deep + i, "{\"a\":", 5);
	send_call(fd, deep);
	expect(fd, "\"org.thinpoold.Failed\"");
	assert_served(fd);
	close(fd);
}

static void a_message_may_fill_the_buffer_and_no_more(void **state)
{
	char *text = malloc(CONTROL_MESSAGE_MAX + 4096);
	int fd = new_client(), other = new_client();

	(void)state;
	assert_non_null(text);
	memset(text, ' ', CONTROL_MESSAGE_MAX + 4096);
	memcpy(text, LIST, strlen(LIST));
	text[CONTROL_MESSAGE_MAX - 1] = '\0';
	send_call(fd, text);
	expect(fd, "\"volumes\"");
	text[CONTROL_MESSAGE_MAX - 1] = ' ';
	send_bytes(fd, text, CONTROL_MESSAGE_MAX + 4096);
	expect(fd, "at most 65536 bytes");
	expect_closed(fd);
	assert_served(other);
	close(other);
	free(text);
}

/* ---- clients that misbehave ---- */

static void a_client_may_leave_while_its_command_runs(void **state)
{
	int fd = new_client(), other = new_client();

	(void)state;
	fake_pool_hold_commands(bench.pool, true);
	send_call(fd, CREATE("v"));
	for (int i = 0; i < 5; i++)
		io_queue_run(bench.q, 1000);
	close(fd);
	assert_served(other); /* while the command runs */
	fake_pool_hold_commands(bench.pool, false);
	send_call(other, CREATE("v"));
	expect(other, "\"org.thinpoold.Exists\"");
	close(other);
}

static long resident_pages(void)
{
	FILE *f = fopen("/proc/self/statm", "r");
	long size, resident;

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%ld %ld", &size, &resident), 2);
	fclose(f);
	return resident;
}

/* Its replies fill its socket; then it is not read either. */
static void a_client_that_never_reads_is_held_to_its_sockets(void **state)
{
	int fd = new_client(), other = new_client();
	unsigned refused = 0, sent = 0;
	long before;

	(void)state;
	assert_served(other);
	before = resident_pages();
	while (refused < 50 && sent < 200000) {
		if (send(fd, STATUS, sizeof(STATUS), MSG_NOSIGNAL) == sizeof(STATUS)) {
			sent++;
			refused = 0;
		} else {
			refused++;
		}
		io_queue_run(bench.q, 0);
	}
	assert_int_equal(refused, 50);
	assert_true((resident_pages() - before) * getpagesize() < 16 << 20);
	assert_served(other);
	close(fd);
	close(other);
}

/* That wait to be read. */
static unsigned count_replies(int fd)
{
	static char bytes[1 << 16];
	ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_PEEK);
	unsigned nr = 0;

	for (ssize_t i = 0; i < n; i++)
		nr += !bytes[i];
	return nr;
}

/* All that one asks at once is not answered before another has its turn. */
static void one_that_asks_without_end_starves_nobody(void **state)
{
	enum { NR = 100 };
	char calls[NR * sizeof("{}")];
	int fd = new_client(), other = new_client();

	(void)state;
	assert_served(fd);
	assert_served(other);
	for (size_t i = 0; i < NR; i++)
		memcpy(calls + i * sizeof("{}"), "{}", sizeof("{}"));
	assert_int_equal(send(fd, calls, sizeof(calls), MSG_NOSIGNAL), sizeof(calls));
	assert_int_equal(send(other, LIST, sizeof(LIST), MSG_NOSIGNAL), sizeof(LIST));
	while (!count_replies(other))
		io_queue_run(bench.q, 1000);
	assert_in_range(count_replies(fd), 0, NR / 2);
	/* Though no byte comes any more, the rest is answered. */
	for (unsigned i = 0; i < NR; i++)
		expect(fd, "\"org.thinpoold.Failed\"");
	close(fd);
	close(other);
}

static void of_a_thousand_connections_a_working_one_survives(void **state)
{
	enum { NR = 1000 };
	int *fds = malloc(NR * sizeof(*fds)), worker = new_client();
	struct rlimit limit;
	unsigned open_ones = 0;

	(void)state;
	assert_non_null(fds);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = MIN(limit.rlim_max, 4096);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_served(worker);
	for (int i = 0; i < NR; i++) {
		fds[i] = new_client();
		if (i % 10 == 9)
			assert_served(worker);
	}
	assert_served(worker);
	for (int i = 0; i < NR; i++) {
		char byte;

		open_ones += recv(fds[i], &byte, 1, 0) < 0 && errno == EAGAIN;
		/* The last ones are the least idle. */
		if (i == NR - 1)
			assert_served(fds[i]);
	}
	assert_int_equal(open_ones, CONTROL_CONNECTIONS_MAX - 1);
	for (int i = 0; i < NR; i++)
		close(fds[i]);
	close(worker);
	free(fds);
}

/* Many come at once; one that asks when they are here already is not idle. */
static void one_that_has_asked_is_not_the_idle_one(void **state)
{
	int fds[CONTROL_CONNECTIONS_MAX], first = new_client();

	(void)state;
	assert_served(first);
	for (int i = 0; i < CONTROL_CONNECTIONS_MAX; i++)
		assert_true((fds[i] = try_connect()) >= 0);
	send_call(first, CREATE("v"));
	expect(first, "\"id\":0");
	for (int i = 0; i < CONTROL_CONNECTIONS_MAX; i++)
		close(fds[i]);
	close(first);
}

static void busy_connections_are_never_closed_for_others(void **state)
{
	int fds[CONTROL_CONNECTIONS_MAX], other;
	char call[160];

	(void)state;
	fake_pool_hold_commands(bench.pool, true);
	for (int i = 0; i < CONTROL_CONNECTIONS_MAX; i++) {
		fds[i] = new_client();
		snprintf(call, sizeof(call), CREATE("v%d"), i);
		send_call(fds[i], call);
		io_queue_run(bench.q, 1000);
	}
	for (int i = 0; i < 10; i++)
		io_queue_run(bench.q, 1000);
	other = new_client();
	expect_closed(other);
	fake_pool_hold_commands(bench.pool, false);
	for (int i = 0; i < CONTROL_CONNECTIONS_MAX; i++) {
		expect(fds[i], "\"id\"");
		close(fds[i]);
	}
}

/* It is closed, rather than waking the queue for ever. */
static void without_a_descriptor_a_client_is_refused(void **state)
{
	struct rlimit limit, old;
	int first = new_client(), fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	(void)state;
	assert_served(first);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", bench.path);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	limit = old;
	limit.rlim_cur = (rlim_t)fd + 1;
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_served(first);
	expect_closed(fd);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	fd = new_client();
	assert_served(fd);
	close(fd);
	close(first);
}

/* ---- life ---- */

static void the_socket_is_for_its_owner_alone(void **state)
{
	mode_t old = umask(0);
	struct stat st;

	(void)state;
	control_server_destroy(bench.server);
	assert_int_equal(access(bench.path, F_OK), -1);
	start_server();
	assert_int_equal(umask(old), 0);
	assert_int_equal(stat(bench.path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
}

static void a_stale_socket_is_replaced(void **state)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int stale = socket(AF_UNIX, SOCK_STREAM, 0), fd;

	(void)state;
	control_server_destroy(bench.server);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", bench.path);
	assert_int_equal(bind(stale, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(stale);
	start_server();
	fd = new_client();
	assert_served(fd);
	close(fd);
}

static void what_is_no_socket_is_not_replaced(void **state)
{
	struct control_server *server = NULL;
	struct tp_error error = { "" };
	FILE *f;

	(void)state;
	bench.server = control_server_destroy(bench.server);
	f = fopen(bench.path, "w");
	assert_non_null(f);
	fclose(f);
	assert_int_equal(control_server_create(bench.q, bench.pool, bench.pressure, &bench.service,
					       bench.path, &server, &error),
			 -EADDRINUSE);
	assert_non_null(strstr(error.text, bench.path));
	assert_int_equal(unlink(bench.path), 0);
}

static void a_path_that_is_too_long_is_refused(void **state)
{
	struct control_server *server = NULL;
	struct tp_error error = { "" };
	char path[200];

	(void)state;
	memset(path, 'x', sizeof(path));
	path[0] = '/';
	path[sizeof(path) - 1] = '\0';
	assert_int_equal(control_server_create(bench.q, bench.pool, bench.pressure, &bench.service,
					       path, &server, &error),
			 -ENAMETOOLONG);
	assert_int_equal(control_server_create(bench.q, bench.pool, bench.pressure, &bench.service,
					       "/nowhere/socket", &server, NULL),
			 -ENOENT);
}

/* ---- requests to reclaim ---- */

/* A cache that takes its time. */
struct cache {
	sem_t entered, leave;
	bool empty;
};

static uint64_t cache_count(void *ctx)
{
	return ((struct cache *)ctx)->empty ? 0 : 3;
}

static uint64_t cache_scan(void *ctx, uint64_t nr)
{
	struct cache *c = ctx;

	sem_post(&c->entered);
	while (sem_wait(&c->leave))
		;
	c->empty = true;
	return nr;
}

static const struct shrinker_ops cache_ops = { .count = cache_count,
					       .scan = cache_scan,
					       .object_bytes = 1000 };

static void a_reclaim_is_answered_when_it_is_done_and_others_meanwhile(void **state)
{
	struct cache cache = { .empty = false };
	struct shrinker *s;
	int fd = new_client(), other = new_client();
	char byte;

	(void)state;
	sem_init(&cache.entered, 0, 0);
	sem_init(&cache.leave, 0, 0);
	assert_int_equal(shrinker_register("slow", &cache_ops, &cache, &s), 0);
	send_call(fd, RECLAIM);
	while (sem_trywait(&cache.entered))
		io_queue_run(bench.q, 1000);
	assert_served(other);
	assert_int_equal(recv(fd, &byte, 1, MSG_PEEK), -1);
	sem_post(&cache.leave);
	expect(fd, "\"shrinkers\":[{\"name\":\"slow\",\"objects\":3,\"bytes\":3000}]");
	send_call(fd, STATUS);
	expect(fd, "\"request\":{\"state\":\"watched\",\"why\":\"\",\"events\":1}");
	shrinker_unregister(s);
	close(fd);
	close(other);
}

static void *end_scan(void *ctx)
{
	usleep(2000); /* nothing hangs on it: before or after the destroy began */
	sem_post(&((struct cache *)ctx)->leave);
	return NULL;
}

static void destroying_waits_for_a_reclaim(void **state)
{
	struct cache cache = { .empty = false };
	struct shrinker *s;
	int fd = new_client();
	pthread_t thread;

	(void)state;
	sem_init(&cache.entered, 0, 0);
	sem_init(&cache.leave, 0, 0);
	assert_int_equal(shrinker_register("slow", &cache_ops, &cache, &s), 0);
	send_call(fd, RECLAIM);
	while (sem_trywait(&cache.entered))
		io_queue_run(bench.q, 1000);
	assert_int_equal(pthread_create(&thread, NULL, end_scan, &cache), 0);
	bench.server = control_server_destroy(bench.server);
	pthread_join(thread, NULL);
	assert_true(cache.empty);
	expect_closed(fd);
	shrinker_unregister(s);
}

static void a_reclaim_of_a_daemon_that_ends_is_refused(void **state)
{
	int fd = new_client();

	(void)state;
	pressure_stop(bench.pressure);
	send_call(fd, RECLAIM);
	expect(fd, "about to end");
	close(fd);
}

static void *release_commands(void *arg)
{
	(void)arg;
	usleep(2000); /* nothing hangs on it: before or after the destroy began */
	fake_pool_hold_commands(bench.pool, false);
	return NULL;
}

static void destroying_waits_for_commands(void **state)
{
	pthread_t thread;

	(void)state;
	for (int round = 0; round < 30; round++) {
		int a = new_client(), b = new_client(), idle = new_client();
		char call[160];

		fake_pool_hold_commands(bench.pool, true);
		snprintf(call, sizeof(call), CREATE("a%d"), round);
		send_call(a, call);
		snprintf(call, sizeof(call), CREATE("b%d"), round);
		send_call(b, call);
		for (int i = 0; i < 5; i++)
			io_queue_run(bench.q, 100);
		assert_int_equal(pthread_create(&thread, NULL, release_commands, NULL), 0);
		bench.server = control_server_destroy(bench.server);
		pthread_join(thread, NULL);
		expect_closed(a);
		expect_closed(b);
		expect_closed(idle);
		assert_int_equal(nr_volumes(), 2 * (round + 1));
		start_server();
	}
}

#define SERVER_TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVER_TEST(calls_are_answered),
		SERVER_TEST(several_calls_in_one_write_are_answered_in_order),
		SERVER_TEST(a_call_in_pieces_is_one_call),
		SERVER_TEST(half_a_call_is_no_call),
		SERVER_TEST(what_is_no_json_is_answered_and_the_connection_goes_on),
		SERVER_TEST(deep_nesting_is_refused),
		SERVER_TEST(a_message_may_fill_the_buffer_and_no_more),
		SERVER_TEST(a_client_may_leave_while_its_command_runs),
		SERVER_TEST(a_client_that_never_reads_is_held_to_its_sockets),
		SERVER_TEST(one_that_asks_without_end_starves_nobody),
		SERVER_TEST(of_a_thousand_connections_a_working_one_survives),
		SERVER_TEST(one_that_has_asked_is_not_the_idle_one),
		SERVER_TEST(busy_connections_are_never_closed_for_others),
		SERVER_TEST(without_a_descriptor_a_client_is_refused),
		SERVER_TEST(the_socket_is_for_its_owner_alone),
		SERVER_TEST(a_stale_socket_is_replaced),
		SERVER_TEST(what_is_no_socket_is_not_replaced),
		SERVER_TEST(a_path_that_is_too_long_is_refused),
		SERVER_TEST(destroying_waits_for_commands),
		SERVER_TEST(a_reclaim_is_answered_when_it_is_done_and_others_meanwhile),
		SERVER_TEST(destroying_waits_for_a_reclaim),
		SERVER_TEST(a_reclaim_of_a_daemon_that_ends_is_refused),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
