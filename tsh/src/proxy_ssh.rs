//! `tsh proxy ssh`: standard input and output to the leg, for a stock client's ProxyCommand. Knows nothing of SSH.

use proto::id::ClusterName;
use proto::preamble::Inner;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, copy_buf};

use crate::flags::ProxySshArgs;
use crate::signed_in::SignedIn;
use crate::ssh::link;
use crate::target::Host;
use cli::failure::Failure;

/// # Errors
/// The proxy refuses, or the leg breaks.
pub(crate) async fn run(signed_in: &SignedIn, args: &ProxySshArgs) -> Result<(), Failure> {
    let host = host_of(&args.target, args.cluster.as_deref(), &signed_in.cluster)?;
    let inner = if args.tls_always { Inner::Tls } else { Inner::Plain };
    let stream = link::leg(signed_in, host.as_str(), inner).await?;
    let (from, to) = tokio::io::split(stream);
    pump(tokio::io::stdin(), tokio::io::stdout(), from, to).await
}

/// Until the host is done. Input that ends is passed on as an end; output goes on.
async fn pump(
    input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
    from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> Result<(), Failure> {
    let mut input = BufReader::with_capacity(COPY_BYTES, input);
    let mut from = BufReader::with_capacity(COPY_BYTES, from);
    let upward = async {
        copy_buf(&mut input, &mut to).await?;
        to.shutdown().await
    };
    let downward = async {
        copy_buf(&mut from, &mut output).await?;
        output.flush().await
    };
    tokio::pin!(upward, downward);
    tokio::select! {
        done = &mut downward => Ok(done?),
        sent = &mut upward => {
            // A host that has hung up takes no more; what it said before still counts.
            drop(sent);
            Ok(downward.await?)
        }
    }
}

/// The host in `[user@]host[:port]`. The account is the SSH protocol's business, the port is the tunnel's.
fn host_of(text: &str, wanted: Option<&str>, cluster: &ClusterName) -> Result<Host, Failure> {
    if let Some(wanted) = wanted.filter(|wanted| *wanted != cluster.as_str()) {
        return Err(Failure::new(format!("you are logged in to cluster {cluster}, not {wanted}"))
            .hint("Run `tsh login` for the other cluster's proxy."));
    }
    let text = text.rsplit_once('@').map_or(text, |(_, host)| host);
    let text = match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        _ => text,
    };
    Host::parse(text, cluster)
}

/// Large copies; a terminal session's are short anyway.
const COPY_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn hosts_as_ssh_writes_them() {
        let cluster = ClusterName::parse("demo.io").unwrap();
        let host = |text| host_of(text, Some("demo.io"), &cluster).map(|h| h.as_str().to_owned());
        assert_eq!(host("root@web1.demo.io:3022").unwrap(), "web1");
        assert_eq!(host("web1").unwrap(), "web1");
        assert_eq!(host("a@b@web1").unwrap(), "web1");
        assert!(host("root@:3022").is_err());
        assert!(host_of("web1", Some("other"), &cluster).is_err());
    }

    #[tokio::test]
    async fn input_may_end_before_output() {
        let (near, far) = tokio::io::duplex(16);
        let host = async {
            let (mut from, mut to) = tokio::io::split(far);
            let mut got = String::new();
            from.read_to_string(&mut got).await.unwrap();
            to.write_all(format!("got {got} and much more than fits").as_bytes()).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let (from, to) = tokio::io::split(near);
        let mut output = Vec::new();
        let (pumped, ()) = tokio::join!(pump(&b"all"[..], &mut output, from, to), host);
        pumped.unwrap();
        assert_eq!(output, b"got all and much more than fits");
    }
}
