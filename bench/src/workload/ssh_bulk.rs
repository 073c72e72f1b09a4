//! Many bytes over SSH: past a bastion, whose CPU is measured, and all the way from a node, by wall clock.

use std::process::Command;

use anyhow::{Result, ensure};

use super::{Bench, Contender, Contest, cpu_of};
use crate::measure::as_f64;
use crate::metric::{CPU_PER_GB, Sample, WALL_RATE};
use crate::program::Core;
use crate::site::client;
use crate::site::cluster::{Cluster, Part};
use crate::site::openssh::{Pam, Server};

/// The session's own cipher, end to end, whatever is in between: the cheapest that OpenSSH has.
const CIPHER: &str = "aes128-gcm@openssh.com";

/// How our bastion is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `ssh -J`, which ends SSH at the bastion and opens a channel from there.
    JumpHost,
    /// `tsh proxy ssh`: after the preamble, plain TCP.
    Plain,
    /// `tsh proxy ssh --tls-always`.
    TlsKept,
}

pub(super) fn past_bastion(bench: &Bench) -> Result<Contest<'_>> {
    jump(bench, Way::Plain)
}

pub(super) fn past_bastion_in_tls(bench: &Bench) -> Result<Contest<'_>> {
    jump(bench, Way::TlsKept)
}

pub(super) fn past_jump_host(bench: &Bench) -> Result<Contest<'_>> {
    jump(bench, Way::JumpHost)
}

fn jump(bench: &Bench, way: Way) -> Result<Contest<'_>> {
    let bytes = bench.effort.choose(1_u64 << 30, 128 << 20);
    let mut contest = Contest::empty();
    contest.ours(|| {
        let cluster = bench.cluster()?;
        let pid = cluster.measure(Part::Bastion)?;
        Ok(Box::new(move || {
            cluster.wait_for_uploads()?;
            sample(pid, &command(&mut past(cluster, way), &cluster.destination(), bytes), bytes)
        }))
    });
    let target = Server::start(Core::Load, Pam::Left, &bench.dir)?;
    for (name, cipher) in [("sshd-aes128", Some(CIPHER)), ("sshd-default", None)] {
        let bastion = Server::start(Core::Measured, Pam::Left, &bench.dir)?;
        let mut ssh = target.ssh();
        ssh.arg(format!("-oProxyCommand={}", bastion.jump_command(cipher)));
        let command = command(&mut ssh, "127.0.0.1", bytes);
        contest.contenders.push(Contender {
            name: name.to_owned(),
            rung: None,
            sample: Box::new(move || sample(bastion.pid(), &command, bytes)),
        });
    }
    contest.helpers.push(target.into_program());
    Ok(contest)
}

fn past(cluster: &Cluster, way: Way) -> Command {
    let mut ssh = cluster.ssh();
    match way {
        Way::JumpHost => ssh.args(["-J".to_owned(), cluster.jump()]),
        Way::Plain => &mut ssh,
        Way::TlsKept => ssh.arg(format!("-oProxyCommand={}", cluster.proxy_command_with_tls())),
    };
    ssh
}

fn command(ssh: &mut Command, destination: &str, bytes: u64) -> Command {
    ssh.args(["-c", CIPHER, destination, &source(bytes)]);
    std::mem::replace(ssh, Command::new("ssh"))
}

/// What the session runs. `head -c` writes 4 KiB at a time: then the scheduler decides how many of them become one packet.
fn source(bytes: u64) -> String {
    format!("dd if=/dev/zero bs=64K count={} status=none", bytes >> 16)
}

fn sample(pid: u32, command: &Command, bytes: u64) -> Result<Sample> {
    let (cpu, (count, took)) = cpu_of(pid, || client::count(Core::Load, command))?;
    ensure!(count == bytes, "{count} bytes arrived, not {bytes}");
    let gigabytes = as_f64(bytes) / 1e9;
    Ok(vec![(CPU_PER_GB, cpu / gigabytes), (WALL_RATE, gigabytes / took.as_secs_f64())])
}

/// `tsh ssh` through bastion and tunnel to the node, against `ssh` straight to a server: nobody has a core for himself.
pub(super) fn whole_way(bench: &Bench) -> Result<Contest<'_>> {
    let bytes = bench.effort.choose(1_u64 << 30, 128 << 20);
    let wall = move |command: &Command| -> Result<Sample> {
        let (count, took) = client::count(Core::Any, command)?;
        ensure!(count == bytes, "{count} bytes arrived, not {bytes}");
        Ok(vec![(WALL_RATE, as_f64(bytes) / 1e9 / took.as_secs_f64())])
    };
    let remote = source(bytes);
    let mut contest = Contest::empty();
    contest.ours(|| {
        let cluster = bench.cluster()?;
        cluster.measure(Part::Everything)?;
        let mut tsh = cluster.command("tsh");
        tsh.args(["ssh", &cluster.tsh_destination(), &remote]);
        Ok(Box::new(move || {
            cluster.wait_for_uploads()?;
            wall(&tsh)
        }))
    });
    // Its default cipher first: that is what people run.
    for (name, cipher) in [("sshd", None), ("sshd-aes128", Some(CIPHER))] {
        let server = Server::start(Core::Any, Pam::Left, &bench.dir)?;
        let mut ssh = server.ssh();
        ssh.args(cipher.map(|cipher| format!("-c{cipher}"))).args(["127.0.0.1", &remote]);
        contest.contenders.push(Contender {
            name: name.to_owned(),
            rung: None,
            sample: Box::new(move || {
                // The server lives as long as its contender.
                let _alive = &server;
                wall(&ssh)
            }),
        });
    }
    Ok(contest)
}
