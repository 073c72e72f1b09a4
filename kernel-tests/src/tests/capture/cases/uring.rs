//! Without system calls: the kernel does what stands in a queue, in the task itself, in a worker or in a thread that looks.

use std::ffi::CString;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use io_uring::{opcode, squeue, types};
use rustix::net::{AddressFamily, SocketType};

use super::super::deed::Deed;
use super::super::stage::Scene;
use super::super::told::Found;
use super::{Case, Play};
use crate::sys::uring::{Way, perform};

pub(super) const CASES: &[Case] = &[
    Case {
        number: 13,
        name: "io_uring open: inline, worker, poller",
        play: Play::Here(opens),
        deed: do_opens,
    },
    Case {
        number: 14,
        name: "io_uring connect: inline, worker, poller",
        play: Play::Here(connects),
        deed: do_connects,
    },
    Case {
        number: 15,
        name: "io_uring unlink, rename, mkdir",
        play: Play::Here(changes),
        deed: do_changes,
    },
];

const HERE: types::Fd = types::Fd(libc::AT_FDCWD);

fn name(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// Does it, or says that the kernel does not: some allow io_uring to nobody.
fn done(deed: &Deed, way: Way, entry: squeue::Entry, of: &(impl ?Sized + std::fmt::Debug)) -> i32 {
    match perform(way, entry, of) {
        Ok(result) => result,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            deed.impossible(format!("io_uring: {error}"))
        }
        Err(error) => panic!("{way:?} of {of:?}: {error}"),
    }
}

fn opens(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let opened = |way: Way| told.opened(&scene.text(way.name())).found();
    Way::ALL.map(opened).into()
}

fn do_opens(deed: &Deed, _: &str) {
    // Made before, so that nothing but the ring opens them by these names.
    for way in Way::ALL {
        File::create(deed.path("new")).unwrap();
        fs::rename(deed.path("new"), deed.path(way.name())).unwrap();
    }
    for way in Way::ALL {
        let name = name(&deed.path(way.name()));
        done(deed, way, opcode::OpenAt::new(HERE, name.as_ptr()).build(), &name);
    }
}

fn connects(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let connected = |way: Way| {
        let any = told.network("connect", "tcp").with("dst_addr", "127.0.0.1");
        any.with("dst_port", told.facts.number(way.name())).named(way.name()).found()
    };
    Way::ALL.map(connected).into()
}

fn do_connects(deed: &Deed, _: &str) {
    for way in Way::ALL {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        deed.tell(way.name(), port);
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let mut address = [0_u8; 16];
        address[..2].copy_from_slice(&2_u16.to_ne_bytes());
        address[2..4].copy_from_slice(&port.to_be_bytes());
        address[4..8].copy_from_slice(&[127, 0, 0, 1]);
        let to = address.as_ptr().cast();
        done(
            deed,
            way,
            opcode::Connect::new(types::Fd(socket.as_raw_fd()), to, 16).build(),
            &address,
        );
    }
}

fn changes(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let path = |what: &str, way: Way| scene.text(&format!("{what}-{}", way.name()));
    let mut found = Vec::new();
    for way in Way::ALL {
        let renamed =
            told.disk(&["rename"], &path("old", way)).with("target_path", path("new", way));
        found.push(told.disk(&["mkdir"], &path("folder", way)).found());
        found.push(renamed.found());
        found.push(told.disk(&["unlink"], &path("gone", way)).found());
    }
    found
}

fn do_changes(deed: &Deed, _: &str) {
    for way in Way::ALL {
        let path = |what: &str| name(&deed.path(&format!("{what}-{}", way.name())));
        let (folder, old, new, gone) = (path("folder"), path("old"), path("new"), path("gone"));
        deed.file(&format!("old-{}", way.name()));
        deed.file(&format!("gone-{}", way.name()));
        done(deed, way, opcode::MkDirAt::new(HERE, folder.as_ptr()).mode(0o755).build(), &folder);
        let rename = opcode::RenameAt::new(HERE, old.as_ptr(), HERE, new.as_ptr());
        done(deed, way, rename.build(), &(&old, &new));
        done(deed, way, opcode::UnlinkAt::new(HERE, gone.as_ptr()).build(), &gone);
    }
}
