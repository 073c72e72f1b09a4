/* Who is talked to. TCP connections with their ends and how they went, by the changes of their states, on both tiers;
 * questions for names, too. What else there is: before it happens (Tier A), or see syscall.bpf.c. */
#include "calls.h"

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_FIN_WAIT2 5
#define TCP_CLOSE 7
#define TCP_LAST_ACK 9
#define TCP_LISTEN 10
#define TCP_CLOSING 11
#define SHUTDOWN_MASK 3
/* Of the flags, the number of the one that says that a FIN has come. */
#define SOCK_DONE 1

/* In an owner's place of the kind of record: how it got its connection. */
#define OWNER_CONNECTS 1
#define OWNER_LISTENS 2

/* A record about a socket that is somebody's, whoever runs now. */
static __always_inline void tell_state(struct header *owner, struct sock *sk, __u32 op, __s32 result, int old)
{
	__u64 number = owner->session;
	struct session *session = bpf_map_lookup_elem(&sessions, &number);
	struct {
		struct header header;
		struct net_record net;
	} record = { .header = *owner };

	if (!session || !(session->classes & (1 << CLASS_NET)))
		return;
	record.header.sequence = __sync_fetch_and_add(&session->tallies[CLASS_NET].records, 1);
	record.header.boot_ns = bpf_ktime_get_boot_ns();
	load_ends(&record.net, sk);
	record.net.op = op;
	record.net.result = result;
	struct tcp_sock *tcp = op == NET_CLOSE ? bpf_skc_to_tcp_sock(sk) : 0;
	if (tcp) {
		/* But not the other's FIN. */
		record.net.rx = tcp->bytes_received - (sk->__sk_common.skc_flags >> SOCK_DONE & 1);
		/* What the program gave, also where it has not been acknowledged. */
		record.net.tx = tcp->bytes_acked + tcp->write_seq - tcp->snd_una;
		/* A SYN that was answered counts, and so does a FIN that was sent. */
		record.net.tx -= owner->kind == OWNER_CONNECTS;
		record.net.tx -= old == TCP_FIN_WAIT1 || old == TCP_FIN_WAIT2 || old == TCP_CLOSING || old == TCP_LAST_ACK;
	}
	record.header.kind = KIND_NET;
	send(session, CLASS_NET, &record.header, sizeof(record));
}

static __always_inline struct header *own(struct sock *sk, __u16 how)
{
	struct teller teller;
	struct header owner = {};

	if (!tell_of(&teller, CLASS_NET))
		return 0;
	begin_at(&owner, teller.task, teller.number, 0, how, PROV_TP);
	return bpf_sk_storage_get(&sockets, sk, &owner, BPF_SK_STORAGE_GET_F_CREATE);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(inet_sock_set_state, struct sock *sk, int old, int new)
{
	struct header *owner;

	if (new == TCP_SYN_SENT) {
		own(sk, OWNER_CONNECTS);
		return 0;
	}
	if (new == TCP_LISTEN) {
		owner = own(sk, OWNER_LISTENS);
		if (owner)
			tell_state(owner, sk, NET_LISTEN, 0, old);
		return 0;
	}
	owner = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!owner)
		return 0;
	if (old == TCP_SYN_SENT) {
		int error = new == TCP_CLOSE ? sk->sk_err : 0;
		if (new == TCP_CLOSE && !error)
			error = ECONNABORTED;
		tell_state(owner, sk, NET_CONNECT, -error, old);
		if (error)
			bpf_sk_storage_delete(&sockets, sk);
	} else if (old == TCP_SYN_RECV && new == TCP_ESTABLISHED) {
		tell_state(owner, sk, NET_ACCEPT, 0, old);
	} else if (new == TCP_CLOSE || ((new == TCP_FIN_WAIT1 || new == TCP_LAST_ACK) &&
					sk->sk_shutdown == SHUTDOWN_MASK)) {
		/* Closed by the program, which may be over before the connection is; or by the other. */
		if (old != TCP_LISTEN && old != TCP_SYN_RECV)
			tell_state(owner, sk, NET_CLOSE, 0, old);
		bpf_sk_storage_delete(&sockets, sk);
	}
	return 0;
}

#define DNS_PORT 53
#define MDNS_PORT 5353
#define IP_UDP_BYTES 8

/* Packets that leave, from the task that sends them: those that ask for names. */
SEC("tp_btf/net_dev_queue")
int BPF_PROG(net_dev_queue, struct sk_buff *skb)
{
	struct teller teller;
	struct sock *sk = skb->sk;
	__u32 number = 0;

	if (!sk || sk->sk_protocol != IPPROTO_UDP)
		return 0;
	unsigned char *udp = skb->head + skb->transport_header;
	__u16 port = 0;
	bpf_probe_read_kernel(&port, sizeof(port), udp + 2);
	port = bpf_ntohs(port);
	if ((port != DNS_PORT && port != MDNS_PORT) || !tell_of(&teller, CLASS_NET))
		return 0;
	struct place *place = take_place(&number);
	if (!place) {
		lose_one(teller.session, CLASS_NET);
		return 0;
	}
	struct header *header = (struct header *)place->bytes;
	struct net_record *net = (struct net_record *)(header + 1);
	__u16 length = 0;
	__builtin_memset(net, 0, sizeof(*net));
	begin(&teller, header, CLASS_NET, KIND_NET, PROV_TP);
	copy_ends(net, sk);
	/* An unconnected socket knows no other end: the packet does. */
	unsigned char *ip = skb->head + skb->network_header;
	if (bpf_ntohs(skb->protocol) == 0x86dd) {
		net->family = AF_INET6;
		bpf_probe_read_kernel(net->remote, 16, ip + 24);
	} else {
		net->family = AF_INET;
		bpf_probe_read_kernel(net->remote, 4, ip + 16);
	}
	net->remote_port = port;
	net->op = NET_SEND;
	net->bits = FLAG_PACKET;
	bpf_probe_read_kernel(&length, sizeof(length), udp + 4);
	__u32 payload = bpf_ntohs(length);
	payload = payload > IP_UDP_BYTES ? payload - IP_UDP_BYTES : 0;
	if (payload > PACKET_BYTES_MAX)
		payload = PACKET_BYTES_MAX;
	net->name_len = put(place, sizeof(*header) + sizeof(*net), udp + IP_UDP_BYTES, payload);
	send(teller.session, CLASS_NET, header, sizeof(*header) + sizeof(*net) + net->name_len);
	leave_place(place);
	return 0;
}

/* An address that a call passes, which the kernel has copied already. */
static __noinline int tell_address(struct socket *socket, void *from, int length, __u32 op)
{
	struct teller teller;
	struct sock *sk = BPF_CORE_READ(socket, sk);
	__u32 number = 0;
	__u16 family = 0;
	int answer = 0;

	if (length < 2 || !tell_of(&teller, CLASS_NET))
		return 0;
	/* TCP is told of by its states, and how it went; strict sessions are asked for before. */
	if (op != NET_BIND && BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP && !teller.session->strict)
		return 0;
	struct place *place = take_place(&number);
	if (!place)
		return lose_one(teller.session, CLASS_NET);
	struct talk *talk = begin_talk(&teller, place, op, PROV_LSM);
	copy_ends(&talk->net, sk);
	__u32 rest = length - sizeof(family);
	if (rest > sizeof(talk->name))
		rest = sizeof(talk->name);
	bpf_probe_read_kernel(&family, sizeof(family), from);
	__builtin_memset(talk->name, 0, NAME_BYTES);
	bpf_probe_read_kernel(talk->name, rest, from + sizeof(family));
	family = family_as_sent(family, op, &talk->net);
	copy_address(talk, family, rest, op == NET_BIND);
	__u64 more = family == AF_UNIX ? digest_of_name(talk) : 0;
	if (op == NET_BIND || !is_folded_talk(&teller, &talk->net, more))
		answer = send_talk(&teller, talk);
	leave_place(place);
	return answer;
}

SEC("lsm/socket_connect")
int BPF_PROG(socket_connect, struct socket *socket, void *address, int length, int ret)
{
	return ret ? ret : tell_address(socket, address, length, NET_CONNECT);
}

SEC("lsm/socket_bind")
int BPF_PROG(socket_bind, struct socket *socket, void *address, int length, int ret)
{
	return ret ? ret : tell_address(socket, address, length, NET_BIND);
}

SEC("lsm/socket_sendmsg")
int BPF_PROG(socket_sendmsg, struct socket *socket, struct msghdr *message, int size, int ret)
{
	void *name = message->msg_name;

	return ret || !name ? ret : tell_address(socket, name, message->msg_namelen, NET_SEND);
}

/* A socket by itself, or with the one at the other end. */
static __noinline int tell_socket(struct sock *sk, struct sock *other, __u32 op)
{
	struct teller teller;
	__u32 number = 0;
	int answer = 0;

	if (!tell_of(&teller, CLASS_NET))
		return 0;
	struct place *place = take_place(&number);
	if (!place)
		return lose_one(teller.session, CLASS_NET);
	struct talk *talk = begin_talk(&teller, place, op, PROV_LSM);
	copy_ends(&talk->net, sk);
	if (other) {
		talk->net.peer = BPF_CORE_READ(other, sk_peer_pid, numbers[0].nr);
		copy_bound(talk, other);
	}
	if (!other || !is_folded_talk(&teller, &talk->net, (__u64)other))
		answer = send_talk(&teller, talk);
	leave_place(place);
	return answer;
}

SEC("lsm/socket_listen")
int BPF_PROG(socket_listen, struct socket *socket, int backlog, int ret)
{
	struct sock *sk = socket->sk;

	return ret || !sk || sk->sk_protocol == IPPROTO_TCP ? ret : tell_socket(sk, 0, NET_LISTEN);
}

/* A local socket: whose it is at the other end. */
SEC("lsm/unix_stream_connect")
int BPF_PROG(unix_stream_connect, struct sock *sk, struct sock *other, struct sock *newsk, int ret)
{
	return ret ? ret : tell_socket(sk, other, NET_CONNECT);
}

SEC("lsm/unix_may_send")
int BPF_PROG(unix_may_send, struct socket *socket, struct socket *other, int ret)
{
	struct sock *sk = socket->sk, *peer = other->sk;

	return ret || !sk || !peer ? ret : tell_socket(sk, peer, NET_SEND);
}

SEC("lsm/socket_create")
int BPF_PROG(socket_create, int family, int type, int protocol, int kern, int ret)
{
	struct teller teller;
	struct {
		struct header header;
		struct net_record net;
	} record = {};

	if (ret || kern || !is_special(family, type) || !tell_of(&teller, CLASS_NET))
		return ret;
	begin(&teller, &record.header, CLASS_NET, KIND_NET, PROV_LSM);
	record.net.op = NET_SOCKET;
	record.net.family = family;
	record.net.kind = type & SOCK_TYPE_MASK;
	record.net.protocol = protocol;
	return send(teller.session, CLASS_NET, &record.header, sizeof(record));
}
