//! More connections than the limit on open files of most machines lets a process hold: in a guest it can be raised.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use relay::DataPlane;
use relay::ktls::Suite;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection};

use super::super::attach::can_rekey;
use super::super::segments::Stream;
use super::wire::{PIECE, Part, Wire, hear_out, talk};
use super::{BULK, NO_LIMITS, Said, Scene, start_for, until};
use crate::pair::client_config;
use crate::waiting::WAIT;

crate::tests![twenty_thousand_half_open_connections_beside_bulk];

const CROWD: usize = 20_000;
/// Both ends of each, the rest with room to spare.
const FILES: u64 = 3 * CROWD as u64;

/// Each has said half a ClientHello and says no more.
fn twenty_thousand_half_open_connections_beside_bulk() {
    if !can_rekey() {
        return crate::not_here("it takes a minute: the newest kernel is enough");
    }
    let room = Rlimit { current: Some(FILES), maximum: Some(FILES) };
    if setrlimit(Resource::Nofile, room).is_err() {
        return crate::not_here("the limit on open files cannot be raised");
    }
    let relay = start_for(CROWD + 100, DataPlane::UringKtls);
    let suite = Suite::ALL[0];
    let scene = Scene::patient(&relay, suite, NO_LIMITS, Duration::from_secs(600));
    let hello = hello(suite);
    let mut crowd = Vec::with_capacity(CROWD);
    for number in 0..CROWD {
        crate::at(format!("connection {number}"));
        let mut socket = TcpStream::connect(scene.entrance).unwrap();
        socket.write_all(&hello[..hello.len() / 2]).unwrap();
        crowd.push(socket);
    }
    until("all of them are held", || scene.opening() == CROWD);
    crate::at("bulk");
    let (mut client, mut target) = scene.connect();
    let (up, down) = (Stream::new(120), Stream::new(121));
    let length = 8 * BULK;
    thread::scope(|scope| {
        scope.spawn(|| {
            let part = Part { say: (&down, 0..length), hear: (&up, 0..length) };
            talk(&mut target, part, || PIECE).unwrap();
            target.close();
            assert!(hear_out(&mut target, &up, length).1.is_ok());
        });
        let part = Part { say: (&up, 0..length), hear: (&down, 0..length) };
        talk(&mut client, part, || PIECE).unwrap();
        client.close();
        assert!(hear_out(&mut client, &down, length).1.is_ok());
    });
    assert!(matches!(scene.outcome().end, relay::End::Closed));
    assert_eq!(scene.opening(), CROWD, "nobody was put out for it");
    crate::at("they leave");
    drop(crowd);
    let said = scene.said.lock().unwrap();
    for _ in 0..CROWD {
        assert!(matches!(said.recv_timeout(WAIT).unwrap(), Said::Failed(_)));
    }
    until("no place is taken any more", || scene.opening() == 0);
}

fn hello(suite: Suite) -> Vec<u8> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = Connection::Client(ClientConnection::new(client_config(suite), name).unwrap());
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    hello
}
