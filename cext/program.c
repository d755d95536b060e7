/* program.c - the offload program in the kernel: loaded through libbpf, attached to interfaces, told which are ours.
 *
 * A filter of ours is known by its priority and handle, so a successor of a killed daemon replaces what stands there, and
 * nobody else's is touched.  The priority is the last but few: other people's filters see every packet first.
 *
 * Compiled without libbpf, everything here says ENOSYS.  Run by Python's threads, one at a time.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

#ifdef HAVE_LIBBPF
#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#define PRIORITY 65000
#define HANDLE 1

struct program {
	struct bpf_object *object;
	int program;
	int ports;
};

static int say_nothing(enum libbpf_print_level level, const char *format, va_list arguments)
{
	(void)level, (void)format, (void)arguments;
	return 0;
}

static struct bpf_map *map_of(struct bpf_object *object, const char *name, uint32_t entries)
{
	struct bpf_map *map = bpf_object__find_map_by_name(object, name);

	if (map && entries)
		bpf_map__set_max_entries(map, entries);
	return map;
}

static void *share(struct bpf_map *map, uint64_t bytes)
{
	return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, bpf_map__fd(map), 0);
}

/* 0 or an errno; libbpf tells by the descriptor that something is missing. */
static int load(struct program *p, struct offload *o, const char *path)
{
	struct bpf_map *flows, *entries, *ports, *secret;
	int error;

	p->object = bpf_object__open_file(path, NULL);
	if (!p->object)
		return errno;
	flows = map_of(p->object, "flows", o->bucket_count);
	entries = map_of(p->object, "offloaded", o->capacity);
	ports = map_of(p->object, "ports", 0);
	secret = map_of(p->object, ".rodata.secret", 0);
	error = secret ? bpf_map__set_initial_value(secret, &o->secret, sizeof(o->secret)) : -ENOENT;
	if (!error)
		error = bpf_object__load(p->object);
	if (error)
		return -error;
	p->program = bpf_program__fd(bpf_object__find_program_by_name(p->object, "offload"));
	p->ports = bpf_map__fd(ports);
	o->buckets = share(flows, o->bucket_count * sizeof(*o->buckets));
	o->entries = share(entries, o->capacity * sizeof(*o->entries));
	return o->buckets == MAP_FAILED || o->entries == MAP_FAILED ? errno : 0;
}

/* Entries are whole pages in the kernel: 16 to a page. */
struct program *program_load(struct table *t, const char *path, uint32_t sessions)
{
	struct offload *o = offload_create((sessions + 15) & ~15u);
	struct program *p = calloc(1, sizeof(*p));
	int error = o && p ? 0 : ENOMEM;

	libbpf_set_print(say_nothing);
	if (!error)
		error = load(p, o, path);
	if (error) {
		if (p)
			bpf_object__close(p->object);
		free(p);
		offload_destroy(o);
		errno = error;
		return NULL;
	}
	offload_begin(t, o);
	return p;
}

static struct bpf_tc_hook hook_of(uint32_t ifindex)
{
	return (struct bpf_tc_hook){.sz = sizeof(struct bpf_tc_hook), .ifindex = (int)ifindex, .attach_point = BPF_TC_INGRESS};
}

int program_attach(struct program *p, uint32_t ifindex)
{
	struct bpf_tc_hook hook = hook_of(ifindex);
	struct bpf_tc_opts options = {.sz = sizeof(options), .handle = HANDLE, .priority = PRIORITY, .prog_fd = p->program,
				      .flags = BPF_TC_F_REPLACE};
	int made = bpf_tc_hook_create(&hook);
	int error = made && made != -EEXIST ? made : bpf_tc_attach(&hook, &options);

	return error ? error : made == 0;
}

void program_detach(uint32_t ifindex)
{
	struct bpf_tc_hook hook = hook_of(ifindex);
	struct bpf_tc_opts options = {.sz = sizeof(options), .handle = HANDLE, .priority = PRIORITY};

	bpf_tc_detach(&hook, &options);
}

/* The array as it should be: each interface at the first free of its places; one that finds none is left out. */
static void place_ports(struct offload_port *places, const struct offload_port *ports, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t probe = 0; probe < OFFLOAD_PROBES; probe++) {
			struct offload_port *place = &places[(ports[i].ifindex + probe) % OFFLOAD_PORTS];

			if (place->ifindex)
				continue;
			*place = ports[i];
			break;
		}
}

void program_set_ports(struct program *p, const struct offload_port *ports, uint32_t n)
{
	struct offload_port places[OFFLOAD_PORTS] = {0}, old;

	place_ports(places, ports, n);
	for (uint32_t i = 0; i < OFFLOAD_PORTS; i++)
		if (!bpf_map_lookup_elem(p->ports, &i, &old) && memcmp(&old, &places[i], sizeof(old)))
			bpf_map_update_elem(p->ports, &i, &places[i], BPF_ANY);
}

#else

struct program *program_load(struct table *t, const char *path, uint32_t sessions)
{
	(void)t, (void)path, (void)sessions;
	errno = ENOSYS;
	return NULL;
}

int program_attach(struct program *p, uint32_t ifindex)
{
	(void)p, (void)ifindex;
	return -ENOSYS;
}

void program_detach(uint32_t ifindex)
{
	(void)ifindex;
}

void program_set_ports(struct program *p, const struct offload_port *ports, uint32_t n)
{
	(void)p, (void)ports, (void)n;
}

#endif
