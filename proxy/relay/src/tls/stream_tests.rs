//! TLS on tokio's sockets: the handshake as a whole, and leaving TLS with nothing lost of what stands behind the last
//! record.

use rustls::ClientConfig;
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;

use super::*;
use crate::tls::session::tests::{SUITES, configs, localhost};

async fn connect(config: Arc<ClientConfig>, to: TcpStream) -> ClientStream<TcpStream> {
    TlsConnector::from(config).connect(localhost(), to).await.unwrap()
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

async fn accepted() -> (ClientStream<TcpStream>, TlsStream) {
    let (server, client) = configs(SUITES[0]);
    // Tickets that nobody reads would make a close of the client's socket a reset.
    let mut server = (*server).clone();
    server.send_tls13_tickets = 0;
    let (near, far) = pair().await;
    let accept = TlsStream::accept(far, Bytes::new(), Arc::new(server), false);
    let (client, accepted) = tokio::join!(connect(client, near), accept);
    (client, accepted.unwrap())
}

#[tokio::test]
async fn tls_is_left_between_two_records_and_what_follows_is_kept() {
    let (mut client, mut stream) = accepted().await;
    client.write_all(b"last frame").await.unwrap();
    client.flush().await.unwrap();
    // In the clear, and read together with the record before it.
    let (mut socket, _) = client.into_inner();
    socket.write_all(b"SSH-2.0-behind").await.unwrap();
    stream.socket.readable().await.unwrap();
    let mut frame = [0; 10];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(&frame, b"last frame");
    let (mut bare, ahead) = stream.leave().unwrap();
    let mut got = ahead.to_vec();
    while got.len() < 14 {
        let mut more = [0; 14];
        let count = bare.read(&mut more).await.unwrap();
        assert_ne!(count, 0);
        got.extend_from_slice(&more[..count]);
    }
    assert_eq!(got, b"SSH-2.0-behind");
    bare.write_all(b"in the clear").await.unwrap();
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"in the clear");
}

#[tokio::test]
async fn tls_is_not_left_in_the_middle_of_a_record() {
    let (mut client, mut stream) = accepted().await;
    client.write_all(b"two halves").await.unwrap();
    client.flush().await.unwrap();
    let mut half = [0; 4];
    stream.read_exact(&mut half).await.unwrap();
    assert!(stream.has_read_ahead());
    assert!(stream.leave().is_err());
}

#[tokio::test]
async fn an_end_without_close_notify_is_no_end() {
    let (mut client, mut stream) = accepted().await;
    client.write_all(b"said").await.unwrap();
    client.flush().await.unwrap();
    let (socket, _) = client.into_inner();
    drop(socket);
    let mut got = Vec::new();
    let error = stream.read_to_end(&mut got).await.unwrap_err();
    assert_eq!((error.kind(), &got[..]), (io::ErrorKind::UnexpectedEof, &b"said"[..]));
}

#[tokio::test]
async fn bulk_goes_both_ways_and_each_half_closes_by_itself() {
    let (client, stream) = accepted().await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| i.to_le_bytes()[1]).collect();
    let send_and_hear = |mut side: Box<dyn crate::Io>, bytes: Vec<u8>| async move {
        let (mut read, mut write) = tokio::io::split(&mut side);
        let send = async {
            write.write_all(&bytes).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (heard, ()) = tokio::join!(read.read_to_end(&mut got), send);
        heard.unwrap();
        assert!(got == bytes);
    };
    tokio::join!(
        send_and_hear(Box::new(client), bytes.clone()),
        send_and_hear(Box::new(stream), bytes.clone())
    );
}

#[tokio::test]
async fn a_hello_that_is_none_is_answered_by_an_alert() {
    let (server, _) = configs(SUITES[0]);
    let (mut near, far) = pair().await;
    // A whole record, and no handshake message in it.
    near.write_all(&[22, 3, 1, 0, 5, 99, 0, 0, 1, 0]).await.unwrap();
    let refused = TlsStream::accept(far, Bytes::new(), server, false).await;
    assert!(matches!(refused, Err(AcceptError::Handshake(_))), "{refused:?}");
    let mut said = Vec::new();
    near.read_to_end(&mut said).await.unwrap();
    assert_eq!(said.first(), Some(&21), "{said:?}");
}
