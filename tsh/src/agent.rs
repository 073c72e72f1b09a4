//! The running ssh-agent (draft-ietf-sshm-ssh-agent): adds the certificate and the bare key with a lifetime and the
//! established comment, removes them by that comment. An own small client, because russh's cannot add certificates or
//! comments. Local, short exchanges: plain blocking I/O with deadlines.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use pki::keys::KeyPairs;
use russh::keys::Certificate;
use zeroize::Zeroizing;

/// `--add-keys-to-agent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum AddKeys {
    /// If an agent runs.
    Auto,
    No,
    /// Files are written too: stock clients by `tsh config` and later `tsh` commands read them.
    Only,
    /// An agent must run.
    Yes,
}

/// Why the agent did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("the ssh-agent refused")]
    Refused,
    #[error("the ssh-agent's answer is not understood")]
    Protocol,
    #[error("the ssh-agent cannot be used")]
    Io(#[from] std::io::Error),
    #[error("the key cannot be given to an ssh-agent")]
    Key,
}

/// A connected agent.
#[derive(Debug)]
pub(crate) struct Agent {
    stream: UnixStream,
}

/// `SSH_AUTH_SOCK`, if set.
pub(crate) fn socket() -> Option<PathBuf> {
    std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The comment by which our identities are known.
pub(crate) fn comment(proxy_host: &str, cluster: &str, user: &str) -> String {
    format!("teleport:{proxy_host}:{cluster}:{user}")
}

impl Agent {
    /// The agent of this login session; `None` when there is none.
    ///
    /// # Errors
    /// A socket is named but cannot be used.
    pub(crate) fn connect() -> Result<Option<Self>, AgentError> {
        let Some(path) = socket() else { return Ok(None) };
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        Ok(Some(Self { stream }))
    }

    /// Adds certificate and key, to be dropped after `lifetime_seconds`.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub(crate) fn add(
        &mut self,
        keys: &KeyPairs,
        certificate: &Certificate,
        comment: &str,
        lifetime_seconds: u32,
    ) -> Result<(), AgentError> {
        for request in add_requests(keys, certificate, comment, lifetime_seconds)? {
            self.expect_success(&request)?;
        }
        Ok(())
    }

    /// Removes each identity with exactly this comment; says how many.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub(crate) fn remove(&mut self, comment: &str) -> Result<usize, AgentError> {
        let answer = self.exchange(&[REQUEST_IDENTITIES])?;
        let blobs = identities(&answer, comment).ok_or(AgentError::Protocol)?;
        for blob in &blobs {
            let mut request = vec![REMOVE_IDENTITY];
            put_string(&mut request, blob);
            self.expect_success(&request)?;
        }
        Ok(blobs.len())
    }

    fn expect_success(&mut self, request: &[u8]) -> Result<(), AgentError> {
        match self.exchange(request)?.first() {
            Some(&SUCCESS) => Ok(()),
            Some(&FAILURE) => Err(AgentError::Refused),
            _ => Err(AgentError::Protocol),
        }
    }

    fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>, AgentError> {
        let mut frame = Zeroizing::new(Vec::with_capacity(4 + request.len()));
        put_string(&mut frame, request);
        self.stream.write_all(&frame)?;
        let mut header = [0; 4];
        self.stream.read_exact(&mut header)?;
        let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
        if length == 0 || length > ANSWER_BYTES_MAX {
            return Err(AgentError::Protocol);
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        Ok(answer)
    }
}

/// The request for the certificate, then the one for the bare key.
fn add_requests(
    keys: &KeyPairs,
    certificate: &Certificate,
    comment: &str,
    lifetime_seconds: u32,
) -> Result<[Zeroizing<Vec<u8>>; 2], AgentError> {
    let pair = keys.ssh().key_data().ed25519().ok_or(AgentError::Key)?;
    let public = pair.public.0;
    // RFC 8709 private part: seed and public half, 64 bytes.
    let secret = Zeroizing::new(pair.to_bytes());
    let blob = certificate.to_bytes().map_err(|_| AgentError::Key)?;
    let finish = |request: &mut Vec<u8>| {
        put_string(request, &public);
        put_string(request, secret.as_slice());
        put_string(request, comment.as_bytes());
        request.push(CONSTRAIN_LIFETIME);
        request.extend_from_slice(&lifetime_seconds.to_be_bytes());
    };
    let mut with_certificate = Zeroizing::new(vec![ADD_ID_CONSTRAINED]);
    put_string(&mut with_certificate, b"ssh-ed25519-cert-v01@openssh.com");
    put_string(&mut with_certificate, &blob);
    finish(&mut with_certificate);
    let mut bare = Zeroizing::new(vec![ADD_ID_CONSTRAINED]);
    put_string(&mut bare, b"ssh-ed25519");
    finish(&mut bare);
    Ok([with_certificate, bare])
}

/// Blobs of the identities with this comment; `None` when the answer is malformed.
fn identities(answer: &[u8], comment: &str) -> Option<Vec<Vec<u8>>> {
    let mut rest = answer.strip_prefix(&[IDENTITIES_ANSWER])?;
    let count = take_u32(&mut rest)?;
    let mut found = Vec::new();
    for _ in 0..count {
        let blob = take_string(&mut rest)?;
        if take_string(&mut rest)? == comment.as_bytes() {
            found.push(blob.to_vec());
        }
    }
    Some(found)
}

/// Length prefix and bytes; no field here comes near four GiB.
fn put_string(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend_from_slice(bytes);
}

fn take_u32(from: &mut &[u8]) -> Option<u32> {
    let (head, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(u32::from_be_bytes(*head))
}

fn take_string<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_u32(from)?).ok()?;
    let (string, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(string)
}

const FAILURE: u8 = 5;
const SUCCESS: u8 = 6;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const REMOVE_IDENTITY: u8 = 18;
const ADD_ID_CONSTRAINED: u8 = 25;
const CONSTRAIN_LIFETIME: u8 = 1;
/// Room for thousands of identities; a broken agent can't make us hold more.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Agents answer at once, unless they ask their user to confirm.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_found_by_their_whole_comment() {
        let mut answer = vec![IDENTITIES_ANSWER, 0, 0, 0, 3];
        for (blob, text) in [("a", "teleport:p:c:u"), ("b", "teleport:p:c:u2"), ("c", "mine")] {
            put_string(&mut answer, blob.as_bytes());
            put_string(&mut answer, text.as_bytes());
        }
        assert_eq!(identities(&answer, &comment("p", "c", "u")), Some(vec![b"a".to_vec()]));
        assert_eq!(identities(&answer[..answer.len() - 1], "x"), None);
        assert_eq!(identities(&[IDENTITIES_ANSWER, 0xff, 0xff, 0xff, 0xff], "x"), None);
        assert_eq!(identities(&[FAILURE], "x"), None);
    }
}
