/* Rules for sessions: what a deed of a task comes under. The node writes the maps (node/capture/src/rules), and a session's
 * rules as a whole are changed by one write to `rules_sessions`: entries are made under a new number before it, and those of
 * the old one go some time after it. */
#ifndef POSTERN_RULES_H
#define POSTERN_RULES_H

#include "common.h"

#define EPERM 1
#define SIGKILL 9
#define AF_INET 2
#define AF_INET6 10
#define RULE_PATH_BYTES sizeof(((struct rules_path *)0)->path)

/* The policy of a session. Not in `sessions`, whose values the kernel counts in while the node would write them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SESSIONS_MAX);
	__type(key, __u64);
	__type(value, __u32);
} rules_sessions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, RULES_POLICIES_MAX);
	__type(key, __u32);
	__type(value, struct rules_policy);
} rules_policies SEC(".maps");

/* To the number of the rule. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, RULES_PATHS_MAX);
	__type(key, struct rules_path);
	__type(value, __u32);
} rules_paths SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, RULES_ADDRESSES_MAX);
	__type(key, struct rules_address);
	__type(value, struct rules_address_ports);
} rules_addresses SEC(".maps");

/* To the number of the rule. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, RULES_HASHES_MAX);
	__type(key, struct rules_hash);
	__type(value, __u32);
} rules_hashes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rules_settings);
} rules_settings SEC(".maps");

/* Where keys are put together: too long for the stack. Of a place, see common.h. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PLACES);
	__type(key, __u32);
	__type(value, struct rules_path);
} rules_keys SEC(".maps");

/* Who is under which rules: what a program looks up once. */
struct ruled {
	__u64 session;
	__u32 policy;
	struct rules_policy *rules;
};

#define HUNDREDTH_NS 10000000

/* The node's own process, by its number and its age: its number is another's when it has ended. */
static __always_inline int is_agent(struct task_struct *task)
{
	__u32 zero = 0;
	struct rules_settings *settings = bpf_map_lookup_elem(&rules_settings, &zero);

	return settings && task->tgid == settings->agent &&
	       (__u32)(task->group_leader->start_boottime / HUNDREDTH_NS) == settings->since;
}

/* False for every task that no rule is about: outside sessions, of a session without rules, the first process, the node's. */
static __always_inline int is_ruled_as(struct ruled *ruled, struct task_struct *task, struct mark *mark)
{
	if (!mark)
		return 0;
	ruled->session = mark->session;
	__u32 *policy = bpf_map_lookup_elem(&rules_sessions, &ruled->session);
	if (!policy)
		return 0;
	ruled->policy = *policy;
	if (task->tgid == 1 || is_agent(task))
		return 0;
	ruled->rules = bpf_map_lookup_elem(&rules_policies, &ruled->policy);
	return ruled->rules != 0;
}

static __always_inline int is_ruled(struct ruled *ruled)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return is_ruled_as(ruled, task, mark_of_current(task));
}

/* The rule that a path comes under in a space, or 0. The path is in a place of a CPU, whose number is given. */
static __always_inline __u32 rule_of_path(__u32 policy, __u32 space, __u32 place, const char *path, __u32 length)
{
	struct rules_path *key = bpf_map_lookup_elem(&rules_keys, &place);

	if (!key)
		return RULE_NO_PATH;
	__builtin_memset(key, 0, sizeof(*key));
	/* What the verifier looks at has to be what is compared here. */
	barrier_var(length);
	if (length > RULE_PATH_BYTES)
		length = RULE_PATH_BYTES;
	bpf_probe_read_kernel(key->path, length, path);
	key->prefixlen = 8 * (sizeof(key->space) + RULE_PATH_BYTES);
	key->space = policy << SPACE_BITS | space;
	__u32 *rule = bpf_map_lookup_elem(&rules_paths, key);
	return rule ? *rule : 0;
}

static __always_inline __u32 rule_of_exec(__u32 policy, __u32 place, const char *path, __u32 length)
{
	return rule_of_path(policy, SPACE_EXEC, place, path, length);
}

/* To move a folder away is to write what is in it. */
static __always_inline __u32 rule_of_write(__u32 policy, __u32 place, const char *path, __u32 length, int moves)
{
	__u32 rule = rule_of_path(policy, SPACE_WRITE, place, path, length);

	return rule || !moves ? rule : rule_of_path(policy, SPACE_MOVE, place, path, length);
}

/* The rule that an address of 16 bytes and a port come under, or 0; what IPv4 has none for is zero. IPv4 in IPv6 is IPv4, and nowhere is here, as the kernel has it. */
static __always_inline __u32 rule_of_connect(__u32 policy, __u32 family, const __u8 *address, __u16 port)
{
	struct rules_address key = {
		.prefixlen = 8 * (sizeof(key) - sizeof(key.prefixlen)),
		.policy = policy,
		.family = family,
	};
	__u32 words[4];

	__builtin_memcpy(words, address, sizeof(words));
	if (family == AF_INET6 && !words[0] && !words[1]) {
		if (words[2] == __builtin_bswap32(0xffff)) {
			key.family = AF_INET;
			words[0] = words[3];
			words[2] = words[3] = 0;
		} else if (!words[2] && !words[3]) {
			words[3] = __builtin_bswap32(1);
		}
	}
	if (key.family == AF_INET && !words[0])
		words[0] = __builtin_bswap32(0x7f000001);
	__builtin_memcpy(key.address, words, sizeof(words));
	struct rules_address_ports *found = bpf_map_lookup_elem(&rules_addresses, &key);
	if (!found)
		return 0;
	for (__u32 i = 0; i < sizeof(found->ports) / sizeof(found->ports[0]); i++) {
		if (i >= found->count)
			break;
		if (found->ports[i].low <= port && port <= found->ports[i].high)
			return found->ports[i].rule;
	}
	return 0;
}

/* What becomes of it. 0, or the error that the program gets. */
static __always_inline int do_as_rule_says(const struct rules_policy *rules)
{
	if (rules->mode == MODE_AUDIT)
		return 0;
	if (rules->mode == MODE_KILL)
		bpf_send_signal(SIGKILL);
	return -EPERM;
}

static __always_inline void begin_denial(struct denial *denial, struct ruled *ruled, __u32 deed, __u32 rule)
{
	denial->deed = deed;
	denial->policy = ruled->policy;
	denial->rule = rule;
	denial->mode = ruled->rules->mode;
	denial->result = ruled->rules->mode == MODE_AUDIT ? 0 : -EPERM;
}

/* Tells of it, and does it. `what` and `more` are whatever tells deeds of a kind apart, since repetitions are only counted. A
 * session's last record is behind it when its number is gone: its rules hold all the same. */
static __always_inline int deny(struct ruled *ruled, struct header *header, struct denial *denial, __u32 length,
				__u64 what, __u64 more)
{
	struct teller teller;
	int result = do_as_rule_says(ruled->rules), failed = 0;

	struct task_struct *task = bpf_get_current_task_btf();
	/* Who is ruled has a mark by now. */
	if (!tell_as(&teller, task, mark_of(task)))
		return result;
	/* What is executed becomes code, too. */
	__u32 deed = denial->deed == DEED_MAP_EXEC ? DEED_EXEC : denial->deed;
	struct fold_key key = {
		.session = teller.number,
		.of = { (__u64)denial->rule << 32 | deed, teller.task->group_leader->start_boottime, what, more },
		.dev = ruled->policy,
		.what = KIND_DENIAL,
	};
	if (is_folded(&teller, &key, &denial->times))
		return result;
	begin(&teller, header, CLASS_CONTROL, KIND_DENIAL, PROV_LSM);
	failed = send(teller.session, CLASS_CONTROL, header, length);
	return result ? result : failed;
}

#endif
