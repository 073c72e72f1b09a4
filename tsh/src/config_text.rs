//! `tsh config`: ssh_config text in the established shape, so that stock clients reach hosts by name and check them
//! against the cluster's host authority. Pure: paths in, text out.

use cli::failure::Failure;

/// What the text is made of.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) proxy_host: &'a str,
    /// `host:port`.
    pub(crate) proxy: &'a str,
    /// `host:port` of the jump listener; empty without one.
    pub(crate) jump: &'a str,
    pub(crate) known_hosts: &'a str,
    pub(crate) identity: &'a str,
    pub(crate) certificate: &'a str,
    pub(crate) tsh: &'a str,
    /// `TELEPORT_HOME`, when it was set.
    pub(crate) home: Option<&'a str>,
    pub(crate) port: u16,
}

/// The text.
///
/// # Errors
/// A path that ssh_config cannot express.
pub(crate) fn render(parts: &Parts<'_>) -> Result<String, Failure> {
    let Parts { cluster, proxy_host, proxy, port, .. } = parts;
    let known_hosts = quoted(parts.known_hosts)?;
    let identity = quoted(parts.identity)?;
    let certificate = quoted(parts.certificate)?;
    let tsh = shell_word(parts.tsh)?;
    let env = match parts.home {
        Some(home) => format!("env TELEPORT_HOME={} ", shell_word(home)?),
        None => String::new(),
    };
    let jump = match parts.jump.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()) {
        Some(port) => format!(
            "\n# The proxy as a jump host: ssh -J {proxy_host} LOGIN@HOST.{cluster}\n\
             Host {proxy_host}\n    Port {port}\n"
        ),
        None => String::new(),
    };
    Ok(format!(
        "#\n# Begin generated Postern configuration for {proxy_host} by tsh\n#\n\
         \n# Common flags for all {cluster} hosts\n\
         Host *.{cluster} {proxy_host}\n\
         \x20   UserKnownHostsFile {known_hosts}\n\
         \x20   IdentityFile {identity}\n\
         \x20   CertificateFile {certificate}\n\
         \x20   HostKeyAlgorithms {HOST_KEY_ALGORITHMS}\n\
         {jump}\
         \n# Flags for all {cluster} hosts except the proxy\n\
         Host *.{cluster} !{proxy_host}\n\
         \x20   Port {port}\n\
         \x20   ProxyCommand {env}{tsh} proxy ssh --cluster={cluster} --proxy={proxy} %r@%h:%p\n\
         \n# End generated Postern configuration\n"
    ))
}

/// A file name as a quoted ssh_config argument. `%` begins a token there, `${` a variable (ssh_config(5), TOKENS).
fn quoted(path: &str) -> Result<String, Failure> {
    let cannot = path.contains("${") || path.contains(['"', '\\']);
    if cannot || path.chars().any(char::is_control) {
        return Err(unusable(path));
    }
    Ok(format!("\"{}\"", path.replace('%', "%%")))
}

/// A word for the shell that runs ProxyCommand, where `%` begins a token as well.
fn shell_word(text: &str) -> Result<String, Failure> {
    if text.chars().any(char::is_control) {
        return Err(unusable(text));
    }
    Ok(format!("'{}'", text.replace('\'', r"'\''").replace('%', "%%")))
}

fn unusable(path: &str) -> Failure {
    Failure::new(format!("{path:?} cannot be written in ssh_config"))
        .hint("Use another folder with TELEPORT_HOME.")
}

/// Certificates only: a bare host key proves nothing here.
const HOST_KEY_ALGORITHMS: &str = "ssh-ed25519-cert-v01@openssh.com,\
ecdsa-sha2-nistp256-cert-v01@openssh.com,rsa-sha2-512-cert-v01@openssh.com,\
rsa-sha2-256-cert-v01@openssh.com";

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'a>() -> Parts<'a> {
        Parts {
            cluster: "example.com",
            proxy_host: "proxy.example.com",
            proxy: "proxy.example.com:3080",
            jump: "proxy.example.com:3023",
            known_hosts: "/home/a b/.tsh/known_hosts",
            identity: "/home/a b/.tsh/keys/proxy.example.com/alice",
            certificate: "/home/a b/.tsh/keys/proxy.example.com/alice-ssh/example.com-cert.pub",
            tsh: "/opt/it's 100%/tsh",
            home: None,
            port: 3022,
        }
    }

    #[test]
    fn text_has_the_established_shape() {
        insta::assert_snapshot!(render(&parts()).unwrap());
        let chosen = Parts { home: Some("/tmp/x y"), jump: "", ..parts() };
        insta::assert_snapshot!(render(&chosen).unwrap());
    }

    #[test]
    fn paths_that_mean_something_else_to_ssh_are_refused() {
        for bad in ["/a\"b", "/a${HOME}", "/a\nProxyCommand x", "/a\\b"] {
            assert!(render(&Parts { identity: bad, ..parts() }).is_err(), "{bad:?}");
        }
        assert!(render(&Parts { tsh: "/a\nHost *", ..parts() }).is_err());
    }
}
