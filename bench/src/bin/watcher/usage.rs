//! What this process has used so far, as the kernel accounts it.

use std::fs;

use anyhow::{Context, Result};

/// CPU of all threads that live, in nanoseconds.
pub(crate) fn cpu_ns() -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(sum)
}

/// CPU of children that have ended, in seconds; to 10 ms.
pub(crate) fn children_cpu() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    // The state is field 3, times of children are 16 and 17.
    let ticks = fields.split_whitespace().skip(16 - 3).take(2).map(str::parse::<f64>);
    let ticks = ticks.sum::<Result<f64, _>>()?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// Memory in KiB by its name in `smaps_rollup` of proc_pid_smaps(5).
pub(crate) fn memory_kib(name: &str) -> Result<f64> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    Ok(number.with_context(|| format!("no {name} in smaps_rollup"))?.parse()?)
}
