//! A command, in a session or outside of one: the CPU that it takes, and that we take to watch it. Its standard input and
//! output are ours.

use std::process::Command;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};

use crate::session::{Watched, load};
use crate::usage::{children_cpu, cpu_ns};
use crate::{Figures, Place};

pub(crate) async fn measure(place: Place, words: &[String]) -> Result<Figures> {
    let (program, rest) = words.split_first().context("which command?")?;
    let mut command = Command::new(program);
    command.args(rest);
    let mut session = if place == Place::Inside { Some(Watched::begin(None)?) } else { None };
    let _beside = if place == Place::Outside { Some(load()?) } else { None };
    let (ours, theirs) = (cpu_ns()?, children_cpu()?);
    let mut child = match &mut session {
        Some(session) => session.spawn(&mut command)?,
        None => command.spawn()?,
    };
    let status = tokio::task::spawn_blocking(move || child.wait()).await??;
    ensure!(status.success(), "{program}: {status}");
    let command_cpu = children_cpu()? - theirs;
    let (mut told, mut lost) = (0.0, 0.0);
    if let Some(session) = &session {
        session.counted.over().await?;
        told = session.counted.told.load(Ordering::Relaxed) as f64;
        lost = session.counted.lost.load(Ordering::Relaxed) as f64;
    }
    let watcher_cpu = (cpu_ns()? - ours) as f64 / 1e9;
    let figures = [
        ("command_cpu", command_cpu),
        ("watcher_cpu", watcher_cpu),
        ("told", told),
        ("lost", lost),
    ];
    Ok(figures.map(|(name, value)| (name.to_owned(), value)).into())
}
