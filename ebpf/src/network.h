/* A record of the network: what Tier A and Tier B have in common. */
#ifndef POSTERN_NETWORK_H
#define POSTERN_NETWORK_H

#include "common.h"

#include <bpf/bpf_endian.h>

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define AF_NETLINK 16
#define AF_PACKET 17
#define AF_ALG 38
#define AF_VSOCK 40
#define SOCK_STREAM 1
#define SOCK_RAW 3
#define SOCK_TYPE_MASK 0xf
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define ECONNABORTED 103

/* With room for an address as calls pass it, without the family: the longest is a path. */
#define NAME_BYTES 112
struct talk {
	struct header header;
	struct net_record net;
	char name[NAME_BYTES];
};

static __always_inline struct talk *begin_talk(struct teller *teller, struct place *place, __u32 op, __u32 prov)
{
	struct talk *talk = (struct talk *)place->bytes;

	__builtin_memset(&talk->net, 0, sizeof(talk->net));
	begin_at(&talk->header, teller->task, teller->number, 0, KIND_NET, prov);
	talk->net.op = op;
	return talk;
}

/* Only now is it counted: what is folded never was. */
static __always_inline int send_talk(struct teller *teller, struct talk *talk)
{
	__u32 length = talk->net.name_len;

	if (length > sizeof(talk->name))
		length = sizeof(talk->name);
	talk->net.name_len = length;
	talk->header.sequence = __sync_fetch_and_add(&teller->session->tallies[CLASS_NET].records, 1);
	return send(teller->session, CLASS_NET, &talk->header, sizeof(talk->header) + sizeof(talk->net) + length);
}

/* Both ends of a socket, where the verifier knows it as one: loads, which cost a tenth of the calls that copy_ends needs. */
static __always_inline void load_ends(struct net_record *net, struct sock *sk)
{
	struct sock_common *common = &sk->__sk_common;

	net->family = common->skc_family;
	net->kind = sk->sk_type;
	net->protocol = sk->sk_protocol;
	if (net->family == AF_INET) {
		*(__u32 *)net->local = common->skc_rcv_saddr;
		*(__u32 *)net->remote = common->skc_daddr;
	} else if (net->family == AF_INET6) {
		for (int i = 0; i < 4; i++) {
			((__u32 *)net->local)[i] = common->skc_v6_rcv_saddr.in6_u.u6_addr32[i];
			((__u32 *)net->remote)[i] = common->skc_v6_daddr.in6_u.u6_addr32[i];
		}
	} else {
		return;
	}
	net->local_port = common->skc_num;
	net->remote_port = bpf_ntohs(common->skc_dport);
}

/* The same of any socket. */
static __always_inline void copy_ends(struct net_record *net, struct sock *sk)
{
	net->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	net->kind = BPF_CORE_READ(sk, sk_type);
	net->protocol = BPF_CORE_READ(sk, sk_protocol);
	net->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	net->remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (net->family == AF_INET) {
		*(__u32 *)net->local = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
		*(__u32 *)net->remote = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	} else if (net->family == AF_INET6) {
		BPF_CORE_READ_INTO(&net->local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&net->remote, sk, __sk_common.skc_v6_daddr);
	} else {
		net->local_port = 0;
		net->remote_port = 0;
	}
}

/* Puts an address that a call passed, and that stands where the name does, where it belongs: at our end for bind(2), at the
 * other's else. */
static __always_inline void copy_address(struct talk *talk, __u16 family, __u32 length, int ours)
{
	struct net_record *net = &talk->net;
	__u8 *ip = ours ? net->local : net->remote;
	__u32 *port = ours ? &net->local_port : &net->remote_port;

	net->family = family;
	if (family == AF_INET) {
		*port = bpf_ntohs(*(__u16 *)talk->name);
		__builtin_memcpy(ip, talk->name + 2, 4);
	} else if (family == AF_INET6) {
		*port = bpf_ntohs(*(__u16 *)talk->name);
		__builtin_memcpy(ip, talk->name + 6, 16);
	} else if (family == AF_VSOCK) {
		/* A port and a machine's number. */
		*port = *(__u32 *)(talk->name + 2);
		__builtin_memcpy(ip, talk->name + 6, 4);
	} else if (family == AF_UNIX) {
		net->name_len = length;
	}
}

/* Of kinds that see or reach more than connections of their own. */
static __always_inline int is_special(int family, int type)
{
	return family == AF_PACKET || family == AF_VSOCK || family == AF_ALG ||
	       ((type & SOCK_TYPE_MASK) == SOCK_RAW && family != AF_NETLINK);
}

/* To send without a family is to send by IPv4. */
static __always_inline __u16 family_as_sent(__u16 family, __u32 op, struct net_record *net)
{
	return !family && op == NET_SEND && net->family == AF_INET ? AF_INET : family;
}

/* Of a local socket's name, so that nobody finds two that give the same. What is behind the name is zero. */
static __always_inline __u64 digest_of_name(struct talk *talk)
{
	__u64 digest = fold_seed;

	for (int i = 0; i < NAME_BYTES / 8; i++) {
		digest = (digest ^ *(__u64 *)(talk->name + 8 * i)) * 0x9e3779b97f4a7c15ULL;
		digest ^= digest >> 29;
	}
	return digest;
}

/* The name by which the other end of a local socket was bound, in place of the one that was passed: that can be relative, or
 * a link. */
static __always_inline void copy_bound(struct talk *talk, struct sock *other)
{
	struct unix_address *address = BPF_CORE_READ((struct unix_sock *)other, addr);
	__u32 length = BPF_CORE_READ(address, len) - sizeof(__u16);

	if (!address || length > sizeof(talk->name))
		return;
	__builtin_memset(talk->name, 0, NAME_BYTES);
	talk->net.name_len = length;
	bpf_probe_read_kernel(talk->name, length,
			      (void *)address + bpf_core_field_offset(struct unix_address, name) + sizeof(__u16));
}

#define FOLD_TALK 0x2000

/* Datagrams and connections of datagram sockets: told once for each end. */
static __always_inline int is_folded_talk(struct teller *teller, struct net_record *net, __u64 more)
{
	struct fold_key key = {
		.session = teller->number,
		.of = { *(__u64 *)net->remote, *(__u64 *)(net->remote + 8),
			(__u64)net->remote_port << 32 | net->family << 16 | net->kind, more },
		.dev = -net->result,
		.what = FOLD_TALK + net->op,
	};
	return is_folded(teller, &key, &net->times);
}

/* Whose a TCP connection is: the beginning of the records about it. Made in the task that connects or listens; the
 * sockets of accepted connections get the listener's. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct header);
} sockets SEC(".maps");

#endif
