//! SSH sessions on a node: what opening one costs in CPU, and what an idle one holds in memory.

use std::process::Command;

use anyhow::{Context, Result};

use super::{Bench, Contender, Contest, cpu_of};
use crate::measure::memory_bytes;
use crate::metric::{CPU_PER_SESSION, Sample, USER_MEMORY};
use crate::program::Core;
use crate::site::client::{self, Talk};
use crate::site::cluster::Part;
use crate::site::openssh::{Pam, Server};

/// As Debian ships it, and without PAM, which our node does not go through either.
const SERVERS: [(&str, Pam); 2] = [("sshd", Pam::Used), ("sshd-no-pam", Pam::Left)];

/// Sessions that run `true`, one after the other. The shell that runs it is part of the cost, on both sides.
pub(super) fn cpu(bench: &Bench) -> Result<Contest<'_>> {
    let count = bench.effort.choose(40_u32, 5);
    contest(bench, Fresh::No, move |pid, _, ssh| {
        let (cpu, ()) = cpu_of(pid, || {
            (0..count).try_for_each(|_| {
                let mut ssh = ssh();
                client::run(ssh.arg("true"), "").map(drop)
            })
        })?;
        Ok(vec![(CPU_PER_SESSION, cpu * 1e3 / f64::from(count))])
    })
}

/// Said by a session once it is open.
const OPEN: &str = "the session is open";

/// Sessions with a terminal in which nothing happens. What runs in them is not counted, only who serves them.
pub(super) fn memory(bench: &Bench) -> Result<Contest<'_>> {
    let count = bench.effort.choose(60_u32, 30);
    let warm_up = bench.effort.choose(20, 10);
    contest(bench, Fresh::Yes, move |pid, program, ssh| {
        let rest = std::time::Duration::from_secs(2);
        // The first ones are not counted: they take what the server allocated at its start and has not used.
        let first = (0..warm_up).map(|_| open(ssh())).collect::<Result<Vec<Talk>>>()?;
        std::thread::sleep(rest);
        let before = memory_bytes(pid, Some(&[program]))?;
        let sessions: Result<Vec<Talk>> = (0..count).map(|_| open(ssh())).collect();
        let sessions = sessions?;
        std::thread::sleep(rest);
        let after = memory_bytes(pid, Some(&[program]))?;
        drop((first, sessions));
        Ok(vec![(USER_MEMORY, (after - before) / 1024.0 / f64::from(count))])
    })
}

fn open(mut ssh: Command) -> Result<Talk> {
    ssh.arg("-tt").arg(format!("echo {OPEN}; exec sleep 600"));
    let mut talk = Talk::start(Core::Load, &ssh)?;
    talk.wait_for(|said| said.contains(OPEN).then(String::new)).context("a session")?;
    Ok(talk)
}

/// Whether each sample has a server of its own, whose memory is not yet full of what was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fresh {
    No,
    Yes,
}

/// Everybody who serves sessions. `measure` gets the process, its name, and what makes a client that only lacks its
/// command.
fn contest<'b>(
    bench: &'b Bench,
    fresh: Fresh,
    measure: impl Fn(u32, &str, &dyn Fn() -> Command) -> Result<Sample> + Copy + 'b,
) -> Result<Contest<'b>> {
    let mut contest = Contest::empty();
    contest.ours(|| {
        let cluster = bench.cluster()?;
        cluster.measure(Part::Node)?;
        Ok(Box::new(move || {
            if fresh == Fresh::Yes {
                cluster.restart_node()?;
            }
            let pid = cluster.measure(Part::Node)?;
            measure(pid, "postern", &|| {
                let mut ssh = cluster.ssh();
                // The destination ends the options; a command's own follow it.
                ssh.arg(cluster.destination());
                ssh
            })
        }))
    });
    for (name, pam) in SERVERS {
        let mut server = Server::start(Core::Measured, pam, &bench.dir)?;
        contest.contenders.push(Contender {
            name: name.to_owned(),
            rung: None,
            sample: Box::new(move || {
                if fresh == Fresh::Yes {
                    server = Server::start(Core::Measured, pam, &bench.dir)?;
                }
                measure(server.pid(), "sshd", &|| {
                    let mut ssh = server.ssh();
                    ssh.arg("127.0.0.1");
                    ssh
                })
            }),
        });
    }
    Ok(contest)
}
