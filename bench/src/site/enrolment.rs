//! The cluster's user, as a person would: takes the invite, chooses a password, enrols a second factor, signs in.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use totp_rs::{Builder, Secret};

use super::client::{self, Talk};
use super::cluster::{Cluster, USER, text};
use crate::program::Core;

/// A code is good once, and for one step ahead of the cluster's clock: enrolment takes this step's, the login the next.
const STEP_SECONDS: u64 = 30;
/// Of a cluster on loopback that lives for one run.
const PASSWORD: &str = "correct horse battery staple bench";

pub(super) fn sign_in(cluster: &Cluster) -> Result<()> {
    let logins = format!("--logins={}", cluster.login());
    let invite =
        cluster.tctl(&["users", "add", USER, "--roles=bench", &logins, "--format=json"])?;
    let invite = text(&invite, "/token")?;
    let mut command = cluster.command("tsh");
    command.arg("invite").args(cluster.proxy_words());
    let mut tsh = Talk::start(Core::Load, &command)?;
    tsh.say(&format!("{invite}\n{PASSWORD}\n"));
    let secret = tsh
        .wait_for(|said| {
            // Only a whole line: the rest may not have arrived yet.
            let (_, rest) = said.split_once("TOTP secret: ")?;
            Some(rest.split_once('\n')?.0.trim().to_owned())
        })
        .context("the second factor's secret")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    tsh.say(&format!("{}\n", code(&secret, now)?));
    tsh.finish().context("tsh invite")?;

    let mut login = cluster.command("tsh");
    login.arg("login").args(cluster.proxy_words()).arg(format!("--user={USER}"));
    let code = code(&secret, now + STEP_SECONDS)?;
    client::run(&login, &format!("{PASSWORD}\n{code}\n")).context("tsh login")?;
    Ok(())
}

fn code(secret: &str, at: u64) -> Result<String> {
    let secret = Secret::try_from_base32(secret)?;
    let totp = Builder::new().with_secret(secret).build_noncompliant();
    Ok(totp.generate(at).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6238, appendix B, last six of the eight digits.
    #[test]
    fn codes() {
        let secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";
        assert_eq!(code(secret, 59).unwrap(), "287082");
        assert_eq!(code(secret, 1_111_111_109).unwrap(), "081804");
    }
}
