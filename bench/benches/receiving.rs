//! Readiness against completions (docs/decisions/0009): a message on each of some connections is passed on, either when a
//! multishot poll says that it is there, by `recv` and `send`, or by the ring alone, received by a multishot receive into a
//! ring of provided buffers and sent by the ring. Sender, relay and receiver are one thread that never waits, so the time
//! is CPU time, the sender's and the receiver's calls included, the same on both sides.
#![expect(
    unsafe_code,
    reason = "what the ring reads and writes by itself has no safe wrapper; the relay does without"
)]
#![expect(clippy::unwrap_used, reason = "a benchmark: a fault ends it")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use io_uring::squeue::Entry;
use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode};
use rustix::net::{RecvFlags, SendFlags};

/// What passes from `from` to `to`, and who is on the other sides.
struct Line {
    sender: TcpStream,
    from: TcpStream,
    to: TcpStream,
    receiver: TcpStream,
}

impl Line {
    fn new() -> Self {
        let ((sender, from), (to, receiver)) = (connected(), connected());
        from.set_nonblocking(true).unwrap();
        to.set_nonblocking(true).unwrap();
        Self { sender, from, to, receiver }
    }
}

fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    one.set_nodelay(true).unwrap();
    other.set_nodelay(true).unwrap();
    (one, other)
}

/// One of the two ways.
trait Way {
    const NAME: &str;

    fn new(lines: &[Line]) -> Self;
    /// Passes on so many bytes, which are there.
    fn pass(&mut self, lines: &[Line], bytes: usize);
}

fn ring() -> IoUring {
    IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(RING_ENTRIES).unwrap()
}

fn push(ring: &mut IoUring, entry: &Entry) {
    // SAFETY: a poll has no pointers. The receives and sends of `Completions` point into its buffers, which live as long
    // as its ring, and a buffer is given back only when the send from it is complete. Descriptors are those of `Line`s,
    // which outlive both.
    unsafe { ring.submission().push(entry).unwrap() }
}

struct Readiness {
    ring: IoUring,
    buffer: Vec<u8>,
}

impl Way for Readiness {
    const NAME: &str = "readiness";

    fn new(lines: &[Line]) -> Self {
        let mut ring = ring();
        for (number, line) in lines.iter().enumerate() {
            let mask = u32::from(libc::POLLIN.cast_unsigned());
            let poll = opcode::PollAdd::new(Fd(line.from.as_raw_fd()), mask).multi(true).build();
            push(&mut ring, &poll.user_data(number as u64));
        }
        ring.submit().unwrap();
        Self { ring, buffer: vec![0; BUFFER_BYTES] }
    }

    fn pass(&mut self, lines: &[Line], bytes: usize) {
        let mut passed = 0;
        while passed < bytes {
            self.ring.submit_and_wait(1).unwrap();
            for event in self.ring.completion() {
                assert!(cqueue::more(event.flags()));
                let line = &lines[usize::try_from(event.user_data()).unwrap()];
                let flags = RecvFlags::DONTWAIT;
                // What a short read leaves is announced anew.
                let Ok((count, _)) = rustix::net::recv(&line.from, &mut self.buffer[..], flags)
                else {
                    continue;
                };
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                assert_eq!(rustix::net::send(&line.to, &self.buffer[..count], flags), Ok(count));
                passed += count;
            }
        }
    }
}

struct Completions {
    /// First: it is gone before what it writes to.
    ring: IoUring,
    buffers: Vec<u8>,
    provided: *mut BufRingEntry,
    tail: u16,
}

impl Completions {
    fn layout() -> Layout {
        // The kernel wants whole pages.
        Layout::from_size_align(usize::from(BUFFERS) * size_of::<BufRingEntry>(), 4096).unwrap()
    }

    /// Gives a buffer to the kernel, to receive into.
    fn provide(&mut self, number: u16) {
        let at = usize::from(number) * BUFFER_BYTES;
        let address = self.buffers[at..at + BUFFER_BYTES].as_mut_ptr();
        // SAFETY: `provided` has `BUFFERS` zeroed, thus valid, entries, and nobody else writes to them. The kernel reads
        // an entry after it has seen the tail behind it, which is stored with release, in a field of the first entry
        // that is a `u16` at its place.
        unsafe {
            let entry = &mut *self.provided.add(usize::from(self.tail % BUFFERS));
            entry.set_addr(address as u64);
            entry.set_len(u32::try_from(BUFFER_BYTES).unwrap());
            entry.set_bid(number);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.provided).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    fn receive(&mut self, line: &Line, number: usize) {
        let receive = opcode::RecvMulti::new(Fd(line.from.as_raw_fd()), GROUP).build();
        push(&mut self.ring, &receive.user_data(number as u64));
    }
}

impl Way for Completions {
    const NAME: &str = "completions";

    fn new(lines: &[Line]) -> Self {
        let layout = Self::layout();
        // SAFETY: the layout is not empty.
        let provided = unsafe { alloc_zeroed(layout) }.cast::<BufRingEntry>();
        let buffers = vec![0; usize::from(BUFFERS) * BUFFER_BYTES];
        let mut this = Self { ring: ring(), buffers, provided, tail: 0 };
        let submitter = this.ring.submitter();
        // SAFETY: page-aligned memory for `BUFFERS` entries, which is there until the ring is not.
        unsafe { submitter.register_buf_ring_with_flags(provided as u64, BUFFERS, GROUP, 0) }
            .unwrap();
        for number in 0..BUFFERS {
            this.provide(number);
        }
        for (number, line) in lines.iter().enumerate() {
            this.receive(line, number);
        }
        this.ring.submit().unwrap();
        this
    }

    fn pass(&mut self, lines: &[Line], bytes: usize) {
        let mut passed = 0;
        let mut events = Vec::new();
        while passed < bytes {
            self.ring.submit_and_wait(1).unwrap();
            events.extend(self.ring.completion());
            for event in events.drain(..) {
                let count = usize::try_from(event.result()).unwrap();
                if event.user_data() & SENT != 0 {
                    passed += count;
                    self.provide(u16::try_from(event.user_data() & !SENT).unwrap());
                    continue;
                }
                let number = usize::try_from(event.user_data()).unwrap();
                let buffer = cqueue::buffer_select(event.flags()).unwrap();
                let start = usize::from(buffer) * BUFFER_BYTES;
                let part = &self.buffers[start..start + count];
                let length = u32::try_from(part.len()).unwrap();
                let to = Fd(lines[number].to.as_raw_fd());
                let send = opcode::Send::new(to, part.as_ptr(), length).flags(libc::MSG_NOSIGNAL);
                push(&mut self.ring, &send.build().user_data(SENT | u64::from(buffer)));
                if !cqueue::more(event.flags()) {
                    self.receive(&lines[number], number);
                }
            }
        }
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // The receives end with the ring, before their buffers do.
        self.ring = ring();
        // SAFETY: allocated with this layout; the ring that knew of it is gone.
        unsafe { dealloc(self.provided.cast(), Self::layout()) };
        self.provided = ptr::null_mut();
    }
}

fn pass<W: Way>(criterion: &mut Criterion, streams: usize, message: usize) {
    let mut lines: Vec<Line> = (0..streams).map(|_| Line::new()).collect();
    let mut way = W::new(&lines);
    let (bytes, mut received) = (vec![7; message], vec![0; message]);
    let mut group = criterion.benchmark_group(format!("receiving/{message} B"));
    group.throughput(Throughput::Elements(streams as u64));
    group.bench_function(BenchmarkId::new(W::NAME, streams), |bencher| {
        bencher.iter(|| {
            for line in &mut lines {
                line.sender.write_all(&bytes).unwrap();
            }
            way.pass(&lines, streams * message);
            for line in &mut lines {
                line.receiver.read_exact(&mut received).unwrap();
            }
        });
    });
    group.finish();
}

fn all(criterion: &mut Criterion) {
    for message in [64, 4096, 16 * 1024] {
        for streams in [1, 16] {
            pass::<Readiness>(criterion, streams, message);
            pass::<Completions>(criterion, streams, message);
        }
    }
}

criterion_group!(benches, all);
criterion_main!(benches);

const RING_ENTRIES: u32 = 256;
const BUFFERS: u16 = 64;
const BUFFER_BYTES: usize = 64 * 1024;
/// The provided buffers' number.
const GROUP: u16 = 1;
/// In a completion's user data: of a send, and the rest is its buffer.
const SENT: u64 = 1 << 32;
