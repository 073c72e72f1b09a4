//! A cluster for tests: real authorities, real certificates, sockets on loopback. No auth, proxy or node.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pki::authority::{AuthorityKind, SshAuthority, TlsAuthority, Validity};
use pki::claims::{HostClaims, UserClaims};
use pki::keys::KeyPairs;
use proto::id::{ClusterName, HostId};
use proto::resource::HostRole;
use proto::snapshot::Authorities;
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::exact::ExactRecords;
use crate::host::{Host, HostCredentials};
use crate::stream::{Prefixed, Tls};
use crate::tls::{self, ClientAuth};

pub(crate) struct Cluster {
    pub(crate) name: ClusterName,
    pub(crate) host_tls: TlsAuthority,
    pub(crate) host_ssh: SshAuthority,
    user_tls: TlsAuthority,
    pub(crate) authorities: Authorities,
}

impl Cluster {
    pub(crate) fn new(name: &str) -> Self {
        let name: ClusterName = name.parse().unwrap();
        let now = crate::unix_now();
        let tls = |kind| {
            let (key, certificate) = TlsAuthority::generate(kind, &name, now).unwrap();
            TlsAuthority::load(kind, &key, &certificate).unwrap()
        };
        let ssh = |kind| SshAuthority::load(kind, &SshAuthority::generate(kind).unwrap()).unwrap();
        let (host_tls, user_tls) = (tls(AuthorityKind::Host), tls(AuthorityKind::User));
        let (host_ssh, user_ssh) = (ssh(AuthorityKind::Host), ssh(AuthorityKind::User));
        let line = |authority: &SshAuthority| authority.public_key().to_openssh().unwrap();
        let authorities = Authorities {
            host_tls: vec![host_tls.certificate_pem().to_owned()],
            user_tls: vec![user_tls.certificate_pem().to_owned()],
            host_ssh: vec![line(&host_ssh)],
            user_ssh: vec![line(&user_ssh)],
        };
        Self { name, host_tls, host_ssh, user_tls, authorities }
    }

    pub(crate) fn verifier(&self) -> pki::Verifier {
        pki::Verifier::new(&self.name, &self.authorities).unwrap()
    }

    pub(crate) fn host_roots(&self) -> Arc<RootCertStore> {
        Arc::new(self.verifier().host_roots())
    }

    pub(crate) fn client_roots(&self) -> Arc<RootCertStore> {
        Arc::new(self.verifier().client_roots())
    }

    pub(crate) fn pin(&self) -> String {
        pki::verify::ca_pin(self.host_tls.certificate_pem()).unwrap()
    }

    /// Credentials of a new machine, good for an hour.
    pub(crate) fn machine(
        &self,
        role: HostRole,
        nodename: &str,
        names: &[&str],
    ) -> HostCredentials {
        let claims = HostClaims {
            cluster: self.name.clone(),
            host_id: HostId::from_random(crate::random16()),
            nodename: nodename.parse().unwrap(),
            roles: vec![role],
        };
        let keys = KeyPairs::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let validity = validity(3600);
        let chain = self.host_tls.issue_host(&claims, &names, &keys.tls_spki(), validity).unwrap();
        let ssh =
            self.host_ssh.issue_host(&claims, &names, &keys.ssh_public_line(), validity).unwrap();
        HostCredentials {
            host_id: claims.host_id,
            cluster: claims.cluster,
            nodename: claims.nodename,
            tls: tls::certified_key(&chain, &keys).unwrap(),
            keys,
            ssh_certificate: ssh,
            authorities: self.authorities.clone(),
            valid_until: validity.not_after,
        }
    }

    /// A person's TLS credentials.
    pub(crate) fn person(&self, user: &str) -> Arc<CertifiedKey> {
        let claims = UserClaims {
            cluster: self.name.clone(),
            user: user.parse().unwrap(),
            roles: vec![],
            traits: Default::default(),
            logins: vec!["root".parse().unwrap()],
        };
        let keys = KeyPairs::generate().unwrap();
        let chain = self.user_tls.issue_user(&claims, &keys.tls_spki(), validity(3600)).unwrap();
        tls::certified_key(&chain, &keys).unwrap()
    }

    pub(crate) fn server(&self, machine: &HostCredentials, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        let resolver = Arc::new(SingleCertAndKey::from(machine.tls.clone()));
        tls::server_config(resolver, &ClientAuth::Optional(self.client_roots()), alpn).unwrap()
    }
}

pub(crate) fn validity(seconds: i64) -> Validity {
    let now = crate::unix_now();
    Validity { not_before: now - 60, not_after: now + seconds }
}

/// A joined machine without a renewal task.
pub(crate) fn host(
    credentials: HostCredentials,
    channel: Channel,
) -> (Host, watch::Sender<Arc<HostCredentials>>) {
    let (replace, watch) = watch::channel(Arc::new(credentials));
    (Host::from_parts(watch, channel), replace)
}

pub(crate) async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

pub(crate) async fn accept(socket: TcpStream, config: Arc<ServerConfig>) -> std::io::Result<Tls> {
    socket.set_nodelay(true)?;
    let stream = ExactRecords::new(Prefixed::new(bytes::Bytes::new(), socket));
    tokio_rustls::TlsAcceptor::from(config).accept(stream).await.map(Tls::Server)
}

/// Serves gRPC on a Unix socket in `dir`; ends with the test's runtime.
pub(crate) fn serve_socket(dir: &Path, routes: tonic::service::Routes) -> Channel {
    let path = dir.join("auth.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming),
    );
    crate::auth_client::socket_channel(path)
}

/// Small numbers that a seed repeats (xorshift64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound).unwrap()).unwrap()
    }
}

/// TLS under a tonic server; tells handlers the client's chain.
pub(crate) struct Served(pub(crate) Tls);

/// What handlers find in the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct PeerChain(pub(crate) Vec<CertificateDer<'static>>);

impl tonic::transport::server::Connected for Served {
    type ConnectInfo = PeerChain;
    fn connect_info(&self) -> PeerChain {
        PeerChain(self.0.get_ref().1.peer_certificates().unwrap_or_default().to_vec())
    }
}

impl AsyncRead for Served {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Served {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }
    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
