//! A real build, inside a session and outside of one with nothing loaded, one after the other: C files of a library that is
//! among our dependencies, and therefore on the machine.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{CORE, Figures, Site, figure, figures};
use crate::metric::{BUILD, BUILD_NOISE, Sample};
use crate::site::client::Talk;

/// In which folders of AWS-LC's `crypto`.
const FOLDERS: [&str; 8] =
    ["asn1", "bio", "bytestring", "evp_extra", "pem", "pkcs7", "pkcs8", "x509"];

pub(super) fn measure(site: &Site) -> Result<Sample> {
    let dir = site.dir.join("build");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("Makefile"), makefile(&sources()?, site.effort.choose(usize::MAX, 40))?)?;
    // What is read for the first time is read from the disk.
    once(site, &dir, "unloaded")?;
    let (mut inside, mut outside, mut again) = (0.0, 0.0, 0.0);
    for turn in 0..site.effort.choose(4, 2) {
        let mut order =
            [("inside", &mut inside), ("unloaded", &mut outside), ("unloaded", &mut again)];
        // Nobody always goes after the same.
        order.rotate_left(turn % 3);
        if turn % 2 == 1 {
            order.reverse();
        }
        for (place, cpu) in order {
            *cpu += figure(&once(site, &dir, place)?, "command_cpu")?;
        }
    }
    Ok(vec![(BUILD, inside * 2.0 / (outside + again)), (BUILD_NOISE, again / outside)])
}

fn once(site: &Site, dir: &Path, place: &str) -> Result<Figures> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "o") {
            fs::remove_file(path)?;
        }
    }
    let mut watcher = site.watcher();
    watcher.args(["run", "--place", place, "--", "make", "-s", "-j2", "-C"]).arg(dir);
    figures(&Talk::start(CORE, &watcher)?.finish()?)
}

/// Where cargo has put the library.
fn sources() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or(home).context("no home")?;
    let registries = fs::read_dir(cargo.join("registry/src")).context("cargo's sources")?;
    for registry in registries {
        for package in fs::read_dir(registry?.path())? {
            let package = package?;
            if package.file_name().to_string_lossy().starts_with("aws-lc-sys-") {
                return Ok(package.path().join("aws-lc"));
            }
        }
    }
    anyhow::bail!("aws-lc-sys is not among cargo's sources")
}

fn makefile(library: &Path, files_max: usize) -> Result<String> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(library.join("crypto").join(folder))? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "c") {
                files.push(path);
            }
        }
    }
    files.sort();
    let (mut rules, mut objects) = (String::new(), String::new());
    for (number, file) in files.iter().take(files_max).enumerate() {
        write!(objects, " {number}.o")?;
        let flags = format!("-O1 -w -I{0}/include -I{0}/crypto", library.display());
        writeln!(rules, "{number}.o:\n\tgcc {flags} -c {} -o $@", file.display())?;
    }
    Ok(format!("all:{objects}\n{rules}"))
}
